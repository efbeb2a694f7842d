/**
 * The JSON body with which a device brings a key: read strictly, so that one key has one spelling and no member is passed over in
 * silence. Everything in it is untrusted.
 */
import { fromUtf8 } from '@keyguard/core/bytes';
import { isRejected, RejectedError } from '@keyguard/core/errors';
import { parsePublicJwk } from '@keyguard/core/keys';
import type { Bytes, PublicJwk } from '@keyguard/core/seams';
import type { Policy } from './policy.ts';

const MAX_BODY_BYTES = 4096;

/** The policy under which such a body is read: it is small, whatever else may be large. */
export function keyBodyPolicy(policy: Policy): Policy {
  return { ...policy, maxBodyBytes: Math.min(policy.maxBodyBytes, MAX_BODY_BYTES) };
}

export function malformed(what: string, detail: string): RejectedError {
  return new RejectedError('malformed_request', `The ${what} is not well-formed: ${detail}.`, { detail });
}

/**
 * The members of the object that `body` is; `what` names it in a refusal.
 * @throws RejectedError `malformed_request`, also for a member that is not among `allowed`
 */
export function readMembers(what: string, body: Bytes, allowed: readonly string[]): Readonly<Record<string, unknown>> {
  let value: unknown;
  try {
    value = JSON.parse(fromUtf8(body));
  } catch (cause) {
    throw new RejectedError('malformed_request', `The ${what} is not JSON.`, { cause });
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw malformed(what, 'it must be an object');
  for (const name of Object.keys(value)) {
    if (!allowed.includes(name)) throw malformed(what, `it may have the members ${allowed.join(', ')} only`);
  }
  return value as Readonly<Record<string, unknown>>;
}

/** The key in its one canonical form. @throws RejectedError `malformed_request` */
export function readJwk(what: string, jwk: unknown): PublicJwk {
  try {
    return parsePublicJwk(jwk);
  } catch (error) {
    if (isRejected(error)) throw malformed(what, error.message);
    throw error;
  }
}

/** The text of a member that may be absent; `null` is the same. @throws RejectedError `malformed_request` */
export function optionalText(what: string, name: string, value: unknown, isValid: (text: string) => boolean): string | null {
  if (value === undefined || value === null) return null;
  if (typeof value !== 'string' || !isValid(value)) throw malformed(what, `${name} is not acceptable`);
  return value;
}

/** Whether `text` may be a one-time code at all; what it stands for is not looked at here. */
export const isCodeText = (text: string): boolean => text.length <= 64;
