/**
 * The real Redis of the tests: `REDIS_SERVER`, or a `redis-server` or `valkey-server` on the path. No npm package brings one, so it may
 * be missing; then its suites are left out and the run says so at its end, unless KEYGUARD_REQUIRE_REDIS=1 makes that a failure.
 */
import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

/** The absolute path of a Redis server, or `null`. @throws Error where one is required and there is none */
export function findRedisServer(): string | null {
  const given = process.env['REDIS_SERVER'];
  const folders = (process.env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '');
  const candidates = given ? [given] : ['redis-server', 'valkey-server'].flatMap((name) => folders.map((folder) => join(folder, name)));
  const found = candidates.find(isExecutable);
  if (found !== undefined) return found;
  if (given) throw new Error(`REDIS_SERVER: ${given} cannot be run.`);
  if (process.env['KEYGUARD_REQUIRE_REDIS'] === '1') {
    throw new Error('KEYGUARD_REQUIRE_REDIS=1, and there is no redis-server or valkey-server on the path: install one, or set REDIS_SERVER.');
  }
  return null;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
