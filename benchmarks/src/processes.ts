/** Starts the parts of a run as processes of their own, each pinned to one core where the machine can. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';

const CONDITION = '--conditions=@keyguard/source';

/**
 * Whether processes can be pinned: there is a `taskset` that works, and a second core. It is asked of each core and not of this process,
 * which may be pinned to one of them itself; what it starts would then stay there with it.
 */
export const canPin = ['0', '1'].every((core) => spawnSync('taskset', ['-c', core, 'true']).status === 0);

/** What is pinned hands that down to what it starts, so that `any` has to be said as well. */
const ALL_CORES = `0-${cpus().length - 1}`;

export type Core = 0 | 1 | 'any';

/** `core`: on which it is pinned; `any` for what works beside a database and other processes, and must not be kept on one. */
export function start(file: string, core: Core, ...args: readonly string[]): ChildProcess {
  const [program, ...rest] = pinned(core, [process.execPath, '--expose-gc', CONDITION, fileURLToPath(new URL(file, import.meta.url)), ...args]);
  return spawn(program, rest, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'], env: { ...process.env, NODE_ENV: 'production' } });
}

export interface ProgramOptions {
  readonly folder: string;
  /** All of its environment but PATH. */
  readonly environment: Readonly<Record<string, string>>;
}

/** A program that is no part of the benchmark. `args`: of node. What it says goes nowhere, but for what it says of errors. */
export function startProgram(core: Core, args: readonly string[], { folder, environment }: ProgramOptions): ChildProcess {
  const [program, ...rest] = pinned(core, [process.execPath, ...args]);
  return spawn(program, rest, {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { PATH: process.env['PATH'] ?? '', HOME: folder, NODE_ENV: 'production', ...environment },
  });
}

function pinned(core: Core, command: readonly string[]): [string, ...string[]] {
  return (canPin ? ['taskset', '-c', core === 'any' ? ALL_CORES : String(core), ...command] : command) as [string, ...string[]];
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
