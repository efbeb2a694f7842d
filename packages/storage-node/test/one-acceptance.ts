/** Lets copies of one request loose on verifiers in several processes, which share a store. */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { KnownDevice, WrittenRequest } from './signed-requests.ts';

const SCRIPT = fileURLToPath(new URL('one-acceptance-process.ts', import.meta.url));

/** What a process is told. */
export interface RacingProcess {
  readonly store: { readonly kind: 'redis' | 'postgres'; readonly url: string };
  readonly device: KnownDevice;
  readonly request: WrittenRequest;
  readonly copies: number;
}

/** How often each outcome came: `accepted`, or the code of the refusal. */
export async function raceProcesses(processes: number, told: RacingProcess): Promise<Readonly<Record<string, number>>> {
  const started = Array.from({ length: processes }, () => {
    const child = spawn(process.execPath, ['--conditions=@keyguard/source', SCRIPT, JSON.stringify(told)], { stdio: ['pipe', 'pipe', 'inherit'] });
    return { child, lines: createInterface({ input: child.stdout })[Symbol.asyncIterator]() };
  });
  try {
    for (const { lines } of started) {
      const { value } = await lines.next();
      if (value !== 'ready') throw new Error('A process did not start.');
    }
    for (const { child } of started) child.stdin.write('go\n');
    const total: Record<string, number> = {};
    for (const { lines } of started) {
      const { value } = await lines.next();
      for (const [outcome, count] of Object.entries(JSON.parse(value!) as Record<string, number>)) total[outcome] = (total[outcome] ?? 0) + count;
    }
    return total;
  } finally {
    for (const { child } of started) child.kill('SIGKILL');
  }
}
