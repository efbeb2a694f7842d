/**
 * Cursors on the wire: what a list made of the place of its last row, bound to that list, its filters and its reader by a MAC. One
 * that was made up, or that another list handed out, is refused before any handler sees it.
 */
import { timingSafeEqual } from 'node:crypto';
import { fromBase64Url, fromUtf8, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { HttpProblem } from './problems.ts';

const TAG_CHARACTERS = 22;
const MAX_CHARACTERS = 1024;

/** Which pages belong together. */
export interface ListIdentity {
  readonly operation: string;
  /** Empty where nobody is signed in. */
  readonly userId: string;
  readonly params: Readonly<Record<string, unknown>>;
  /** Of the query, what is neither the cursor nor the length of a page. */
  readonly filters: Readonly<Record<string, string>>;
}

export interface Cursors {
  write(list: ListIdentity, cursor: string): string;
  /** @throws HttpProblem `malformed_request` */
  read(list: ListIdentity, wire: string): string;
}

/** @param hash keyed: whoever does not hold its key makes no cursor */
export function boundCursors(hash: (text: string) => string): Cursors {
  const tagOf = ({ operation, userId, params, filters }: ListIdentity, cursor: string): string => {
    const sorted = (record: Readonly<Record<string, unknown>>): unknown[] => Object.entries(record).toSorted(([a], [b]) => (a < b ? -1 : 1));
    return hash(`cursor\0${JSON.stringify([operation, userId, sorted(params), sorted(filters), cursor])}`).slice(0, TAG_CHARACTERS);
  };
  return {
    write: (list, cursor) => `${toBase64Url(utf8(cursor))}.${tagOf(list, cursor)}`,
    read(list, wire) {
      const [text = '', tag = '', ...rest] = wire.length > MAX_CHARACTERS ? [] : wire.split('.');
      const bytes = rest.length === 0 && tag.length === TAG_CHARACTERS ? fromBase64Url(text) : null;
      if (bytes !== null) {
        try {
          const cursor = fromUtf8(bytes);
          if (timingSafeEqual(Buffer.from(tagOf(list, cursor)), Buffer.from(tag))) return cursor;
        } catch {
          // Below: it is not one of ours, whatever it is.
        }
      }
      throw new HttpProblem('malformed_request', 'The cursor is not one that this list handed out.');
    },
  };
}
