/** A substrate in memory that takes its time, and can go wrong: what sound and sabotaged implementations are built on. */
import { injectFaults, type InjectedFaults } from '@keyguard/conformance';
import { UnavailableError } from '@keyguard/core/errors';

export const NO_ROOM = 'There is no room.';

export interface Shelf {
  readonly faults: InjectedFaults;
  /** One atomic step. */
  step<T>(work: () => T, needsRoom?: boolean): Promise<T>;
}

export function newShelf(): Shelf {
  const faults = injectFaults({ failure: () => new Error('The connection broke.'), full: () => new Error(NO_ROOM) });
  return {
    faults,
    step: (work, needsRoom) =>
      faults.through(async () => {
        await new Promise((resolve) => setTimeout(resolve, 0));
        return work();
      }, needsRoom),
  };
}

/** `work`, whose failures are outages; but where `instead` knows better. */
export async function orOutage<T>(seam: string, work: () => Promise<T>, instead: (error: Error) => T | undefined = () => undefined): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    const answer = instead(cause as Error);
    if (answer !== undefined) return answer;
    throw new UnavailableError(seam, 'It broke.', { cause });
  }
}
