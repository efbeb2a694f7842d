/**
 * What a person at a terminal is told of an error that ends a process: what to do, where it is ours to say, and never a secret. It passes
 * what the log passes, because what an error says may be somebody else's words, with an address, a row or a key in them.
 */
import { knownSecrets, scrub, wordsOf } from './redaction.ts';

const OURS: ReadonlySet<string> = new Set([
  'ConfigError', 'NotMigratedError', 'UsageError', 'UnavailableError', 'FolderInUseError', 'FolderUnsafeError', 'RootInUseError', 'RolledBackError',
]);

/** `secrets` are those of the configuration, as far as it was read. */
export function explain(error: unknown, secrets: readonly string[] = []): string {
  return knownSecrets(secrets)(scrub(explained(error)));
}

function explained(error: unknown): string {
  if (!(error instanceof Error)) return 'KeyGuard cannot start.';
  const { code, port, address } = error as { code?: unknown; port?: unknown; address?: unknown };
  if (code === 'EADDRINUSE') return `Port ${port} on ${address} is in use: stop what uses it, or set PORT to another one.`;
  if (code === 'EACCES' && port !== undefined) return `This user may not listen on port ${port}: set PORT to one above 1023.`;
  if (!OURS.has(error.name)) return `${error.name}: ${wordsOf(error)}`;
  return error.cause instanceof Error ? `${error.message}\n  (${wordsOf(error.cause)})` : error.message;
}
