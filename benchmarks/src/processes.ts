/** Starts the parts of a run as processes of their own, each pinned to one core where the machine can. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

const CONDITION = '--conditions=@keyguard/source';

/** Whether processes can be pinned: there is a `taskset` that works, and more than one core. */
export const canPin = availableParallelism() > 1 && spawnSync('taskset', ['-c', '0,1', 'true']).status === 0;

/** `core`: on which it is pinned; `any` for what works beside a database and other processes, and must not be kept on one. */
export function start(file: string, core: 0 | 1 | 'any', ...args: readonly string[]): ChildProcess {
  const command = [process.execPath, '--expose-gc', CONDITION, fileURLToPath(new URL(file, import.meta.url)), ...args];
  const [program, ...rest] = canPin && core !== 'any' ? ['taskset', '-c', String(core), ...command] : command;
  return spawn(program!, rest, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'], env: { ...process.env, NODE_ENV: 'production' } });
}

/** The next message of `child`. Rejects when it ends instead. */
export function messageOf(child: ChildProcess): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const onExit = (): void => reject(new Error(`A process of the benchmark ended: ${child.spawnargs.at(-2)}.`));
    child.once('exit', onExit);
    child.once('message', (message) => {
      child.off('exit', onExit);
      resolve(message);
    });
  });
}
