/** Work on one thing, one after the other in this process: those who would only get in each other's way queue up instead. */
export type Turns = <T>(key: string, work: () => Promise<T>) => Promise<T>;

export function inTurns(): Turns {
  const last = new Map<string, Promise<unknown>>();
  return async (key, work) => {
    const mine = (last.get(key) ?? Promise.resolve()).then(work);
    const settled = mine.catch(() => {});
    last.set(key, settled);
    try {
      return await mine;
    } finally {
      if (last.get(key) === settled) last.delete(key);
    }
  };
}
