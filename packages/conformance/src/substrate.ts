/**
 * What a suite must know of an implementation before it defines its cases, so that none is skipped at run time.
 */
export interface Substrate {
  /** Built on nothing that could fail or roll back: the cases that need a failing substrate or transactions are left out. */
  readonly inMemory?: boolean;
}
