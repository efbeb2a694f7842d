/** The vectors of what only a server reads: one-time codes, and public keys through `node:crypto`. */
import { describe, expect, test } from 'vitest';
import type { PublicJwk } from '@keyguard/core/seams';
import { hashEnrollmentCode } from '@keyguard/server-verifier/enrollment-code';
import { nodePrimitives } from '@keyguard/server-verifier/node-primitives';
import { hashRotationCode } from '@keyguard/server-verifier/rotation-code';
import keys from '../../../vectors/keys.json' with { type: 'json' };
import codes from '../../../vectors/one-time-code.json' with { type: 'json' };

const hashes: Readonly<Record<string, (code: string) => string | null>> = {
  'keyguard-enrollment-code-v1': hashEnrollmentCode,
  'keyguard-rotation-code-v1': hashRotationCode,
};

describe.each(codes.testGroups)('$label', ({ label, tests }) => {
  test.each(tests as readonly { readonly tcId: number; readonly comment: string; readonly code: string; readonly hash?: string; readonly result: string }[])(
    '$tcId $result: $comment',
    ({ code, hash, result }) => {
      expect(hashes[label]!(code)).toBe(result === 'valid' ? hash : null);
    },
  );
});

describe('public keys through node:crypto', () => {
  const points = keys.testGroups.find(({ type }) => type === 'ImportKey')!.tests as readonly { readonly tcId: number; readonly comment: string; readonly jwk: unknown; readonly result: string }[];
  test.each(points)('$tcId $result: $comment', ({ jwk, result }) => {
    const importKey = (): unknown => nodePrimitives().importPublicKey(jwk as PublicJwk);
    if (result === 'valid') expect(importKey()).toBeTypeOf('object');
    else expect(importKey).toThrow(expect.objectContaining({ name: 'RejectedError', code: 'jwk_invalid' }));
  });
});
