/**
 * How a case of a suite says what it is evidence of: of which seam, for which implementation, and of which of its properties. A
 * reporter reads it from the results, so a table made of them shows what ran and nothing else.
 */
import { test } from 'vitest';

/**
 * - `contract`: what the words of the interface promise to one caller, and to several in turn.
 * - `races`: a hundred callers at once, over several instances.
 * - `failing`: a substrate of which every fifth call fails, before or after it has acted; and one that is gone.
 * - `hanging`: a substrate that does not answer, and then does.
 * - `full`: a substrate that has no room, and then has.
 * - `expiry`: what has a time is there until then, to the millisecond, and not after.
 */
export type Property = 'contract' | 'races' | 'failing' | 'hanging' | 'full' | 'expiry';

export const PROPERTIES: readonly Property[] = ['contract', 'races', 'failing', 'hanging', 'full', 'expiry'];

/** What one case is evidence of. */
export interface Evidence {
  readonly seam: string;
  readonly implementation: string;
  readonly property: Property;
}

/** The name under which {@link Evidence} is in the metadata of a case. */
export const EVIDENCE = 'keyguardConformance';

export type Case = (name: string, run: () => void | Promise<void>) => void;

/** `it` for each property: `it.races('lets one pass', …)`. */
export type Cases = Readonly<Record<Property, Case>>;

export function casesOf(seam: string, implementation: string): Cases {
  const of = (property: Property): Case => {
    const evidence: Evidence = { seam, implementation, property };
    // eslint-disable-next-line vitest/valid-title -- the suites name their cases.
    return (name, run) => test(name, { meta: { [EVIDENCE]: evidence } as object }, run);
  };
  return {
    contract: of('contract'),
    races: of('races'),
    failing: of('failing'),
    hanging: of('hanging'),
    full: of('full'),
    expiry: of('expiry'),
  };
}
