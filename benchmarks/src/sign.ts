/** Signing one request with a body of one KiB, on WebCrypto as a client has it; and what peers take for less. */
import { createSigner } from '@keyguard/core/sign';
import { randomUUID } from 'node:crypto';
import { SignJWT } from 'jose';
import jsonwebtoken from 'jsonwebtoken';
import { AUTHORITY, BODY, makeKey, makeRequest, ORDINARY_HEADERS, quickSigner, TARGET } from './material.ts';
import { rowsOf, type Suite } from './results.ts';
import { rfc9421Signer } from './rfc9421.ts';
import { pairedMedian, timeInTurn } from './rounds.ts';

const OURS = 'KeyGuard createSigner';
const LIMIT = 'bare subtle.digest + subtle.sign';

export const sign: Suite = async ({ quick }) => {
  const key = await makeKey();
  const { subtle } = globalThis.crypto;
  const { privateKey } = key.webCryptoPair;
  const { base } = await makeRequest(quickSigner(key));

  const signRequest = createSigner({ key: key.webCrypto });
  const unsigned = { method: 'POST', authority: AUTHORITY, target: TARGET, headers: ORDINARY_HEADERS, body: BODY };

  const signRfc9421 = rfc9421Signer(key);
  const claims = (): { htm: string; htu: string; jti: string; iat: number } => ({
    htm: 'POST',
    htu: `https://${AUTHORITY}${TARGET}`,
    jti: randomUUID(),
    iat: Math.floor(Date.now() / 1000),
  });

  const timings = await timeInTurn({
    operations: 50,
    rounds: quick ? 40 : 160,
    warmUpRounds: quick ? 40 : 120,
    budgetMs: quick ? 5_000 : 20_000,
    contestants: [
      {
        name: LIMIT,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) {
            await subtle.digest('SHA-256', BODY);
            await subtle.sign({ name: 'ECDSA', hash: 'SHA-256' }, privateKey, base);
          }
        },
      },
      {
        name: OURS,
        async run(operations) {
          for (let i = 0; i < operations; i += 1) await signRequest(unsigned);
        },
      },
      {
        name: 'jose SignJWT ES256 (no body)',
        async run(operations) {
          for (let i = 0; i < operations; i += 1) await new SignJWT(claims()).setProtectedHeader({ alg: 'ES256', kid: key.keyId }).sign(privateKey);
        },
      },
      {
        name: 'jsonwebtoken ES256 (no body; node:crypto)',
        run(operations) {
          for (let i = 0; i < operations; i += 1) jsonwebtoken.sign(claims(), key.privateObject, { algorithm: 'ES256', keyid: key.keyId });
        },
      },
      {
        name: 'http-message-signatures (node:crypto)',
        async run(operations) {
          for (let i = 0; i < operations; i += 1) await signRfc9421();
        },
      },
    ],
  });
  return [
    {
      title: 'Sign one request, body of 1 KiB',
      about:
        'One after the other, on one core. The limit is one digest and one signature in the same runtime (WebCrypto), with the bytes ready. ' +
        'A JSON Web Token does not cover a body, and two peers sign on node:crypto, without the thread hop that WebCrypto costs.',
      unit: 'µs',
      rows: rowsOf(timings, { [LIMIT]: 'limit', [OURS]: 'ours' }),
      ratios: [
        {
          name: 'bare digest + signature / createSigner',
          value: pairedMedian([timings.get(LIMIT)!, timings.get(OURS)!], (limit, ours) => limit / ours),
          goal: { atLeast: 0.9 },
        },
      ],
    },
  ];
};
