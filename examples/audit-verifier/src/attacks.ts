/** The ten attacks on an audit log that a verifier must notice, and how it speaks of them. */

export type Attack =
  | 'edit'
  | 'insert'
  | 'reorder'
  | 'drop-middle'
  | 'drop-tail'
  | 'drop-all'
  | 'fork'
  | 'swapped-checkpoint'
  | 'restored-old-database'
  | 'rewrite-by-key-holder';

export const ATTACKS: Readonly<Record<Attack, string>> = {
  edit: 'An entry was changed',
  insert: 'An entry was inserted',
  reorder: 'Entries were put into another order',
  'drop-middle': 'Entries were taken out of the middle',
  'drop-tail': 'The end of the log was cut off',
  'drop-all': 'All entries were deleted',
  fork: 'The log was forked: two signed histories contradict each other',
  'swapped-checkpoint': 'A checkpoint was exchanged',
  'restored-old-database': 'An older state of the database was put back',
  'rewrite-by-key-holder': 'The log was rewritten by a holder of the MAC key',
};

export interface Finding {
  readonly attack: Attack;
  /** The first number concerned, and the one after the last; `null` where it is no entry that is concerned. */
  readonly range: { readonly from: number; readonly to: number } | null;
  /** Whether the range is exactly what was touched, or only what it must lie in. */
  readonly isExact: boolean;
  readonly because: string;
}

export function finding(attack: Attack, from: number, to: number, isExact: boolean, because: string): Finding {
  return { attack, range: { from, to }, isExact, because };
}
