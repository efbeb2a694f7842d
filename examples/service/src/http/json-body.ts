/**
 * JSON bodies of the control plane: limited before they are read, strict when they are. Whatever is not plain JSON in UTF-8 of a
 * sensible depth is a 400 before a schema sees it.
 */
import type { Request, RequestHandler } from 'express';
import { fromUtf8 } from '@keyguard/core/bytes';
import { bodyBudget } from '@keyguard/server-verifier/body';
import { ipBucket } from '@keyguard/server-verifier/ip';
import { readRawBody } from '@keyguard/server-verifier/node';
import type { Policy } from '@keyguard/server-verifier/policy';
import { HttpProblem } from './problems.ts';

export const MAX_JSON_BYTES = 64 * 1024;
const MAX_HELD_BYTES = 16 * 1024 * 1024;
const BODY_TIMEOUT_MS = 10_000;
const MAX_DEPTH = 16;
const LONE_SURROGATE = /[\uD800-\uDFFF]/u;
const JSON_TYPE = /^application\/json[\t ]*(?:;[\t ]*charset="?utf-8"?[\t ]*)?$/i;

export type JsonReader = (request: Request) => Promise<unknown>;

/** A reader of JSON bodies of at most 64 KiB; all that are being read share one budget, of which no address has more than its share. */
export function jsonReader(policy: Policy): JsonReader {
  const limits: Policy = { ...policy, maxBodyBytes: MAX_JSON_BYTES, bodyTimeoutMs: BODY_TIMEOUT_MS };
  const budget = bodyBudget(MAX_HELD_BYTES);
  return async (request) => {
    const encoding = request.headers['content-encoding'];
    if (encoding !== undefined && encoding !== 'identity') throw new HttpProblem('unsupported_media_type', 'Send the body without Content-Encoding.');
    const type = request.headers['content-type'];
    if (type !== undefined && !JSON_TYPE.test(type)) throw new HttpProblem('unsupported_media_type', 'Send the body as application/json.');
    const lease = budget(ipBucket(request.ip ?? null));
    let bytes: Uint8Array;
    try {
      bytes = await readRawBody(request, limits, lease.charge);
    } finally {
      lease.release();
    }
    if (bytes.length === 0) return {};
    if (type === undefined) throw new HttpProblem('unsupported_media_type', 'Send the body as application/json.');
    let value: unknown;
    try {
      value = JSON.parse(fromUtf8(bytes));
    } catch {
      throw new HttpProblem('malformed_request', 'The body is not JSON in UTF-8.');
    }
    assertPlain(value);
    return value;
  };
}

/** No depth that a later step would recurse into, and no text that a database cannot keep or that has no UTF-8 form. */
function assertPlain(root: unknown): void {
  let level: unknown[] = [root];
  for (let depth = 0; level.length > 0; depth += 1) {
    if (depth > MAX_DEPTH) throw new HttpProblem('malformed_request', `The body is nested deeper than ${MAX_DEPTH} levels.`);
    const next: unknown[] = [];
    for (const value of level) {
      if (typeof value === 'string') assertText(value);
      else if (typeof value === 'number' && !Number.isFinite(value)) throw new HttpProblem('malformed_request', 'A number is too large.');
      else if (typeof value === 'object' && value !== null) {
        for (const [name, member] of Object.entries(value)) {
          assertText(name);
          next.push(member);
        }
      }
    }
    level = next;
  }
}

function assertText(text: string): void {
  if (text.includes('\0') || LONE_SURROGATE.test(text)) throw new HttpProblem('malformed_request', 'Texts may hold neither U+0000 nor lone surrogates.');
}

/** For routes that take no body: one that is sent all the same is a mistake of the caller's. */
export const noBody: RequestHandler = (request, _response, next) => {
  const { 'content-length': length, 'transfer-encoding': encoding } = request.headers;
  const type = request.headers['content-type'];
  const isEmpty = (length === undefined || length === '0') && encoding === undefined;
  // Clients that always send JSON send an empty object.
  if (isEmpty || (length === '2' && type !== undefined && JSON_TYPE.test(type))) next();
  else next(new HttpProblem('malformed_request', 'This route takes no body.'));
};
