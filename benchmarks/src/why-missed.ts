const AROUND_ECDSA =
  'The faster the machine checks a signature, the more the rest weighs. Most of the rest is reading the head, the hash of the body, the bytes of the base and the ' +
  'nonce that is kept; the limiters answer through promises, and every await behind a seam costs one more.';
const BEHIND_EXPRESS =
  'The row of the bare steps by hand shows what is left when everything is taken away but the protocol itself: that is the most that Express allows here. The way ' +
  'from there to KeyGuard is limits, time-outs, the body budget, the second look at the device, and the promises between the seams. Of these only the promises could go ' +
  'without a guarantee: a limiter of our own that answers at once and a recipe that awaits nothing known took 5 to 8 % off the processor time in a trial.';

/** What stands in the way of a goal, by the name of its ratio; told in RESULTS.md when that goal is missed. */
export const WHY_MISSED: Readonly<Record<string, string>> = {
  'bare crypto.verify / whole': AROUND_ECDSA,
  'bare crypto.verify / functions, no stores': AROUND_ECDSA,
  'everything but ECDSA / one bare verify': AROUND_ECDSA,
  'KeyGuard / Express + jose': BEHIND_EXPRESS,
  'KeyGuard / node:http + one bare verify': BEHIND_EXPRESS,
};
