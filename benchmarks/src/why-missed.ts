/** What stands in the way of a goal, by the name of its ratio; told in RESULTS.md when that goal is missed. */
export const WHY_MISSED: Readonly<Record<string, string>> = {};
