/**
 * How large the body of a call may be, by its route: known from the signed head, so that what is too large is refused before it is
 * read.
 */
import type { BodySize } from './provider.ts';
import { findRoute } from './providers.ts';

const MEBIBYTE = 1024 * 1024;
/** What every call that may be large may have, whatever is configured. */
export const MAX_CALL_BYTES = 32 * MEBIBYTE;
const MAX_SMALL_BYTES = 10 * MEBIBYTE;

/** The part of a signed head that decides. */
export interface RouteHead {
  readonly path: string;
  readonly contentType: string | null;
}

/** The limit of a request with that head, in bytes. What is no route has the smallest. `maxUploadBytes` is the operator's. */
export function bodyLimits(maxUploadBytes: number): (head: RouteHead) => number {
  const bytes: Readonly<Record<BodySize, number>> = { small: MAX_SMALL_BYTES, call: MAX_CALL_BYTES, upload: maxUploadBytes };
  return ({ path, contentType }) => {
    const route = findRoute(path);
    return bytes[route === null ? 'small' : route.provider.bodySize(route.rest, isForm(contentType))];
  };
}

/** Whether a body of that type is a form with files in it. */
export function isForm(contentType: string | null): boolean {
  return contentType !== null && /^multipart\/form-data(?:[\t ]*;|$)/i.test(contentType);
}
