/**
 * The process: reads its configuration, takes the lock on its data folder, starts the service and stops it on a signal.
 *
 * Little is imported here, so that a second process on one folder is refused before it has loaded anything.
 */
import { enableCompileCache } from 'node:module';
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { readConfig, secretsOf, withDotEnv } from './config.ts';
import { claimFolder } from './db/folder-lock.ts';
import { explain } from './explanation.ts';

const SAME_SIGNAL_MS = 1000;

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

// Of the configuration, once it is read: no last word may have one in it.
let secrets: readonly string[] = [];

async function main(): Promise<void> {
  const config = readConfig(withDotEnv(process.env, process.cwd()), process.cwd());
  secrets = secretsOf(config);
  let stoppingSinceMs: number | null = null;
  let stopStarted: (() => void) | null = null;
  // Before anything is held: whoever stops a service that is just starting means it as well, and the first process of a container
  // does not end by a signal that it does not listen to.
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      // Whoever runs us may hand on the signal that the terminal has sent us already.
      if (stoppingSinceMs !== null && performance.now() - stoppingSinceMs > SAME_SIGNAL_MS) process.exit(1);
      if (stoppingSinceMs !== null) return;
      stoppingSinceMs = performance.now();
      say(stopStarted === null ? 'Stopping: it was just starting. Once more to stop at once.' : 'Stopping: running calls have half a minute to end. Once more to stop at once.');
      stopStarted?.();
    });
  }
  const isStopping = (): boolean => stoppingSinceMs !== null;

  const lock = await claimFolder(config.dataDir, () => {
    // Another process may have the folder by now: nothing more must be written, not even a last word to the database.
    process.stderr.write(`The lock of the data folder ${config.dataDir} was deleted while KeyGuard ran: it stops at once, before two processes write there.\n`);
    process.exit(1);
  });
  // In our own folder: whoever can write a compile cache decides what runs.
  enableCompileCache(join(config.dataDir, 'compile-cache'));
  const [{ startService }, { createLog, describeError }] = await Promise.all([import('./service.ts'), import('./log.ts')]);
  const log = createLog(config.logLevel, { secrets });
  // Of its own, Node prints an error with all its members, and a driver's have the row in them.
  process.on('uncaughtException', (error) => {
    log.fatal({ error: describeError(error) }, 'ended by an error that nothing caught');
    process.exit(1);
  });
  const leave = (): never => {
    lock.release();
    process.exit(0);
  };
  // A signal that came while all of this was loaded is heard of when the loop has asked for news, once it has turned.
  await setImmediate();
  await setImmediate();
  if (isStopping()) leave();
  const service = await startService({ config, log, say });
  const stop = async (): Promise<void> => {
    try {
      await service.stop();
      leave();
    } catch (error) {
      log.error({ error: describeError(error) }, 'the stop failed');
      process.exit(1);
    }
  };
  stopStarted = () => void stop();
  if (isStopping()) stopStarted();
}

try {
  await main();
} catch (error) {
  process.stderr.write(`${explain(error, secrets)}\n`);
  process.exitCode = 1;
  // Whatever is still open must not keep alive a process that serves nothing.
  setTimeout(() => process.exit(1), 250).unref();
}
