/** What `append.ts` and the processes that it starts say to each other. */

export interface WriterTask {
  /** Where PostgreSQL is; or the folder of a PGlite of its own. */
  readonly url?: string;
  readonly folder?: string;
  readonly origin: string;
  /** 32 bytes as hex. */
  readonly macKey: string;
}

export type WriterOrder =
  | {
      readonly append: 'audit' | 'limit';
      readonly forMs: number;
      /** How many callers append one entry each at a time; to the limit, how many entries a batch has. */
      readonly callers: number;
    }
  /** Read and verify the chain, which MUST have so many entries. */
  | { readonly verifyEntries: number };

export interface WriterReport {
  readonly entries: number;
  readonly perSecond: number;
  /** From call to answer. */
  readonly p50Ms: number;
  readonly p99Ms: number;
}

/** What the limit writes into: the columns and indexes of the audit log, and a head of one number. */
export const LIMIT_TABLES: readonly string[] = [
  'CREATE TABLE public.limit_log (LIKE keyguard.secret_audit_logs INCLUDING ALL)',
  'CREATE TABLE public.limit_heads (origin text PRIMARY KEY, seq bigint NOT NULL)',
  'GRANT INSERT ON public.limit_log TO PUBLIC',
  'GRANT SELECT, INSERT, UPDATE ON public.limit_heads TO PUBLIC',
];
