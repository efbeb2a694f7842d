/** JSON in a file of ours: written one way, and read as untrusted. */
import { fromUtf8, utf8 } from '@keyguard/core/bytes';
import type { Bytes } from '@keyguard/core/seams';

export function writeJson(value: object): Bytes {
  return utf8(`${JSON.stringify(value, undefined, 2)}\n`);
}

/** The members of the object in `bytes` (untrusted); none where it is no object. */
export function readJson(bytes: Bytes): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(fromUtf8(bytes));
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
