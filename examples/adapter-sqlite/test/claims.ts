/** A process that claims 200 nonces of a file, and tells how many were its own. Arguments: the file, the time. */
import { DatabaseSync } from 'node:sqlite';
import { sqliteReplayStore } from '../src/sqlite-replay-store.ts';

const [path, now] = process.argv.slice(2) as [string, string];
const nowMs = Number(now);
const store = sqliteReplayStore(new DatabaseSync(path), { clock: { nowMs: () => nowMs }, timeoutMs: 10_000 });
const counts = { accepted: 0, refused: 0 };
for (let serial = 0; serial < 200; serial += 1) {
  const claimed = store.claim('key', `nonce-${serial}`, nowMs / 1000, nowMs + 360_000) as boolean;
  counts[claimed ? 'accepted' : 'refused'] += 1;
}
process.send!(counts);
