/**
 * Pages of a listing by time of creation, newest first. A cursor says after which row a page begins; it names nothing that the
 * page before did not show, and grants nothing: the policies apply to every page anew.
 */
import { fromBase64Url, fromUtf8, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { RejectedError, UsageError } from '@keyguard/core/errors';
import { integer } from './client.ts';

const MAX_LIMIT = 200;

/** Which page of a list. */
export interface PageRequest {
  /** 1 to 200; 50 by default. */
  readonly limit?: number;
  /** `nextCursor` of the page before. Untrusted. */
  readonly cursor?: string | null;
}

/** One page of a list. */
export interface Page<T> {
  readonly items: readonly T[];
  /** `null` on the last page. */
  readonly nextCursor: string | null;
}

export function pageLimit({ limit = 50 }: PageRequest): number {
  if (!Number.isInteger(limit) || limit < 1 || limit > MAX_LIMIT) {
    throw new UsageError('invalid_option', `limit must be an integer from 1 to ${MAX_LIMIT}.`);
  }
  return limit;
}

/** The place of a row in the listing: when it was created, and its id. */
export type PageKey = readonly [createdAtMs: number, id: string];

export function pageCursor(key: PageKey): string {
  return toBase64Url(utf8(JSON.stringify(key)));
}

/**
 * After which row the page begins; `null`: with the first.
 * @throws RejectedError `malformed_request` for a cursor that this code did not write
 */
export function pageStart({ cursor = null }: PageRequest): PageKey | null {
  if (cursor === null) return null;
  try {
    const [createdAtMs, id] = JSON.parse(fromUtf8(fromBase64Url(cursor)!)) as [unknown, unknown];
    if (typeof createdAtMs !== 'number' || typeof id !== 'string' || id.includes('\0')) throw new TypeError();
    return [integer(createdAtMs), id];
  } catch {
    throw new RejectedError('malformed_request', 'The cursor is not one that was handed out.');
  }
}

/** One page of `rows`, of which one more than `limit` was asked for. */
export function pageOf<Row, T>(rows: readonly Row[], limit: number, keyOf: (row: Row) => PageKey, itemOf: (row: Row) => T): Page<T> {
  const shown = rows.slice(0, limit);
  return {
    items: shown.map(itemOf),
    nextCursor: rows.length > limit ? pageCursor(keyOf(shown.at(-1)!)) : null,
  };
}
