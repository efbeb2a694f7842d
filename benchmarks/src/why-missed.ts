const AROUND_ECDSA =
  'The faster the machine checks a signature, the more the rest weighs. About half of the rest is the format (head, hash of the body, bytes of the base: the row without ' +
  'stores), the other half the recipe around it: limiters that answer through promises, the nonce that is kept, the second look at the device, an await behind every seam.';
const BEHIND_EXPRESS =
  'The row of the bare steps by hand shows what is left when everything is taken away but the protocol itself: that is the most that Express allows here. The way ' +
  'from there to KeyGuard is limits, time-outs, the body budget, the second look at the device, and the promises between the seams. Of these only the promises could go ' +
  'without a guarantee: a limiter of our own that answers at once and a recipe that awaits nothing known took 5 to 8 % off the processor time in a trial.';
const EIGHT_PROCESSES =
  'A turn writes what the callers of one process wait for, here eight entries, and holds the head for two round trips and one commit to the disk: the row of the bare SQL shows what ' +
  'these alone take on this machine, and the row with 32 callers each that turns, not entries, are what is scarce.';

/** What stands in the way of a goal, by the name of its ratio; told in RESULTS.md when that goal is missed. */
export const WHY_MISSED: Readonly<Record<string, string>> = {
  'bare crypto.verify / whole': AROUND_ECDSA,
  'bare crypto.verify / functions, no stores': AROUND_ECDSA,
  'everything but ECDSA / one bare verify': AROUND_ECDSA,
  'KeyGuard / Express + jose': BEHIND_EXPRESS,
  'KeyGuard / node:http + one bare verify': BEHIND_EXPRESS,
  'PostgreSQL, 8 processes × 8 callers: appended entries/s': EIGHT_PROCESSES,
  'PostgreSQL, 8 processes × 8 callers: p99 of an append in ms': EIGHT_PROCESSES,
};
