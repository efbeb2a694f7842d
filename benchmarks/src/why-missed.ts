const AROUND_ECDSA =
  'The faster the machine checks a signature, the more the rest weighs. About half of the rest is the format (head, hash of the body, bytes of the base: the row without ' +
  'stores), the other half the recipe around it: the limiters, the nonce that is kept, the second look at the device, an await behind every seam.';
const BEHIND_EXPRESS =
  'The row of the bare steps by hand shows what is left when everything is taken away but the protocol itself: that is the most that Express allows here. The way ' +
  'from there to KeyGuard is limits, time-outs, the body budget, the second look at the device, and the promises between the seams. Of these only the promises could go ' +
  'without a guarantee.';
const EIGHT_PROCESSES =
  'A turn writes what the callers of one process wait for, here eight entries, and holds the head for two round trips and one commit to the disk: the row of the bare SQL shows what ' +
  'these alone take on this machine, and the row with 32 callers each that turns, not entries, are what is scarce.';

const THREE_COMMITS =
  'A call waits three times for what must be durable, each behind the one before: the claim of its nonce, the entry before the provider key is used, the entry before the answer ends. ' +
  'Each is one statement and one commit. The bare proxy with three bare commits shows what these alone take, with nothing else done: more than all of Portkey, which writes nothing down.';
const PER_CALL =
  'A verification, a claim and two entries are made, sealed, written and later read back for each call, by the same core that hands it on; on PGlite the database works on that core too. A bare proxy ' +
  'with one verify is what is left when all of that is taken away, and the one with three bare commits what writing a call down costs at least, without a chain, a MAC, limits, metering or usage.';
const EMBEDDED_PAUSES =
  'The database is in the process, and a statement of it stops everything else: those of the second-by-second work, such as summing up usage, come between the bytes of a stream.';
const FIRST_EVENT =
  'The call is handed on after the claim and the first entry are durable: two commits, which no byte of a stream can come before. The bare proxy with bare commits waits for as many, and shows what is left.';

const ON = ['PGlite', 'PostgreSQL', 'PostgreSQL and Redis'].map((database) => `KeyGuard on ${database}`);
const ofProxy = ON.flatMap((name): [string, string][] => [
  [`${name}: added p50 / Portkey's`, THREE_COMMITS],
  [`${name} / Portkey gateway, requests/s`, PER_CALL],
  [`${name} / node:http proxy + one bare verify, requests/s`, PER_CALL],
  [`${name}: first SSE byte, p50 over the bare proxy's in ms`, FIRST_EVENT],
  [`${name}: first SSE byte, p99 over the bare proxy's in ms`, name === ON[0] ? EMBEDDED_PAUSES : FIRST_EVENT],
]);

/** What stands in the way of a goal, by the name of its ratio; told in RESULTS.md when that goal is missed. */
export const WHY_MISSED: Readonly<Record<string, string>> = {
  'bare crypto.verify / whole': AROUND_ECDSA,
  'bare crypto.verify / functions, no stores': AROUND_ECDSA,
  'everything but ECDSA / one bare verify': AROUND_ECDSA,
  'KeyGuard / Express + jose': BEHIND_EXPRESS,
  'KeyGuard / node:http + one bare verify': BEHIND_EXPRESS,
  'PostgreSQL, 8 processes × 8 callers: appended entries/s': EIGHT_PROCESSES,
  'PostgreSQL, 8 processes × 8 callers: p99 of an append in ms': EIGHT_PROCESSES,
  ...Object.fromEntries(ofProxy),
};
