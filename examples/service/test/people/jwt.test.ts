/** JWTs that this service did not issue, or not so, or not any more: all of them open nothing. */
import { createHmac, createPrivateKey, generateKeyPairSync, randomBytes, sign, type KeyObject } from 'node:crypto';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { jwtParty } from '../../src/auth/better-auth.ts';
import { openDeploymentKeys } from '../../src/keys/hierarchy.ts';
import { backends, type Backend } from '../stage.ts';
import { bearerOf, startStage, type SignedIn, type Stage } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

type Json = Record<string, unknown>;

const encode = (value: object | string): string => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');

describe.each(backends())('forged JWTs on %s', (_title, open) => {
  let backend: Backend;
  let stage: Stage;
  let ada: SignedIn;
  let eve: SignedIn;
  let jwt = '';
  let header: Json = {};
  let claims: Json = {};
  let own: KeyObject;
  let publicX = '';

  /** Signed as the service signs: what is wrong is what it says. */
  const issued = (head: object | string, body: object | string, key = own): string => {
    const input = `${encode(head)}.${encode(body)}`;
    return `${input}.${sign(null, Buffer.from(input), key).toString('base64url')}`;
  };
  const hs256 = (secret: string | Buffer, head: object = { ...header, alg: 'HS256' }): string => {
    const input = `${encode(head)}.${encode(claims)}`;
    return `${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`;
  };
  const statusOf = async (token: string): Promise<number> => (await stage.call('GET', '/api/devices', { headers: { authorization: `Bearer ${token}` } })).status;

  beforeAll(async () => {
    backend = await open();
    stage = await startStage(backend);
    [ada, eve] = [await stage.newPerson('ada'), await stage.newPerson('eve')];
    jwt = (await stage.call('GET', '/api/auth/token', { token: ada.token })).json.token;
    [header, claims] = jwt.split('.').slice(0, 2).map((part) => JSON.parse(Buffer.from(part, 'base64url').toString())) as [Json, Json];
    const keys = await openDeploymentKeys(postgresKeyRecords(stage.sql()), { kind: 'file', path: join(stage.deployment.folder, 'data/root.key') });
    own = createPrivateKey({ key: keys.jwt.privateJwk as never, format: 'jwk' });
    publicX = String(keys.jwt.publicJwk['x']);
  });
  afterAll(async () => {
    await stage.stop();
    await backend.stop();
  });

  it('are not taken for real ones, of which one is', async () => {
    expect(await statusOf(jwt)).toBe(200);
    // So that the table below fails for what it says, and not because of how it is made.
    expect(await statusOf(issued(header, claims))).toBe(200);
    expect(claims).toMatchObject({ sub: ada.userId, sid: expect.any(String), exp: (claims['iat'] as number) + 900 });
  });

  it('are refused, each of them', async () => {
    const foreign = generateKeyPairSync('ed25519');
    const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 });
    const p256 = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const ed448 = generateKeyPairSync('ed448');
    const [head, body, signature] = jwt.split('.') as [string, string, string];
    const nowSeconds = Math.floor(Date.now() / 1000);
    const signedBy = (key: KeyObject, alg: string, hash: string | null): string => {
      const input = `${encode({ ...header, alg })}.${body}`;
      return `${input}.${sign(hash, Buffer.from(input), hash === null ? key : { key, dsaEncoding: 'ieee-p1363' }).toString('base64url')}`;
    };
    const ended = bearerOf(await stage.signIn(ada.email));
    const ofEnded = (await stage.call('GET', '/api/auth/token', { token: ended })).json.token;
    await stage.call('POST', '/api/auth/sign-out', { token: ended });
    const sidOf = async ({ token }: SignedIn): Promise<string> => (await stage.call('GET', '/api/auth/get-session', { token })).json.session.id;
    const text = JSON.stringify(claims);

    const forged: Record<string, string> = {
      'alg none without a signature': `${encode({ ...header, alg: 'none' })}.${body}.`,
      'alg none with a signature': `${encode({ ...header, alg: 'none' })}.${body}.${signature}`,
      'alg NONE': `${encode({ ...header, alg: 'NONE' })}.${body}.${signature}`,
      'no alg': issued({ kid: header['kid'] }, claims),
      'HS256 with the public key as text': hs256(publicX),
      'HS256 with the public key as bytes': hs256(Buffer.from(publicX, 'base64url')),
      'HS256 with the JWK': hs256(JSON.stringify({ kty: 'OKP', crv: 'Ed25519', x: publicX })),
      'HS256 with nothing': hs256(''),
      'RS256 by a foreign key': signedBy(rsa.privateKey, 'RS256', 'sha256'),
      'ES256 by a foreign key': signedBy(p256.privateKey, 'ES256', 'sha256'),
      'EdDSA by another curve': signedBy(ed448.privateKey, 'EdDSA', null),
      'EdDSA by a foreign key under our id': issued(header, claims, foreign.privateKey),
      'a foreign key without an id': issued({ alg: 'EdDSA' }, claims, foreign.privateKey),
      'an unknown key id': issued({ ...header, kid: 'jwt-signing-nobody' }, claims),
      'a key id that is SQL': issued({ ...header, kid: `' OR '1'='1` }, claims, foreign.privateKey),
      'a key id that is a path': issued({ ...header, kid: '../../dev/null' }, claims, foreign.privateKey),
      'a key that it brings along': issued({ ...header, jwk: foreign.publicKey.export({ format: 'jwk' }) }, claims, foreign.privateKey),
      'a key at an address': issued({ ...header, jku: `${stage.origin()}/jwks.json` }, claims, foreign.privateKey),
      'a certificate at an address': issued({ ...header, x5u: `${stage.origin()}/cert.pem` }, claims, foreign.privateKey),
      'a certificate that it brings along': issued({ ...header, x5c: [randomBytes(64).toString('base64')] }, claims, foreign.privateKey),
      'expired': issued(header, { ...claims, iat: nowSeconds - 1000, exp: nowSeconds - 100 }),
      'not yet': issued(header, { ...claims, nbf: nowSeconds + 600 }),
      'another issuer': issued(header, { ...claims, iss: 'https://evil.example' }),
      'another audience': issued(header, { ...claims, aud: 'https://evil.example' }),
      'another deployment': issued(header, { ...claims, iss: jwtParty('another'), aud: jwtParty('another') }),
      'no issuer': issued(header, { ...claims, iss: undefined }),
      'no audience': issued(header, { ...claims, aud: undefined }),
      'an empty subject': issued(header, { ...claims, sub: '' }),
      'no subject': issued(header, { ...claims, sub: undefined }),
      'a subject that is no text': issued(header, { ...claims, sub: { id: ada.userId } }),
      'an empty session': issued(header, { ...claims, sid: '' }),
      'no session': issued(header, { ...claims, sid: undefined }),
      'a session that is a list': issued(header, { ...claims, sid: [claims['sid']] }),
      'a session that never was': issued(header, { ...claims, sid: 'nothing' }),
      'a session of somebody else': issued(header, { ...claims, sid: await sidOf(eve) }),
      'somebody else with this session': issued(header, { ...claims, sub: eve.userId }),
      'a session that has ended': ofEnded,
      'another subject under the old signature': `${head}.${encode({ ...claims, sub: eve.userId })}.${signature}`,
      'a member that is there twice, under the old signature': `${head}.${encode(`${text.slice(0, -1)},"sub":"${eve.userId}"}`)}.${signature}`,
      'a critical header that nobody knows': issued({ ...header, crit: ['exp2'], exp2: 1 }, claims),
      'an empty list of critical headers': issued({ ...header, crit: [] }, claims),
      'an unencoded payload': issued({ ...header, b64: false, crit: ['b64'] }, claims),
      'a payload that is no object': issued(header, '"text"'),
      'a payload that is no JSON': issued(header, '{'),
      'a header that is no JSON': issued('{', claims),
      'padding': `${head}.${body}.${signature}==`,
      'ordinary base64': `${head}.${body}.${Buffer.from(signature, 'base64url').toString('base64')}`,
      'a dot at the end': `${jwt}.`,
      'a dot before': `.${jwt}`,
      'four parts': `${jwt}.${signature}`,
      'half a signature': jwt.slice(0, -40),
      'no signature': `${head}.${body}.`,
      'a signature of zeros': `${head}.${body}.${'A'.repeat(86)}`,
      'huge': `${head}.${encode({ ...claims, more: 'x'.repeat(6000) })}.${signature}`,
      'encrypted': `${encode({ alg: 'dir', enc: 'A256GCM' })}..${'A'.repeat(16)}.${body}.${'A'.repeat(22)}`,
    };
    const outcomes: Record<string, number> = {};
    for (const [name, token] of Object.entries(forged)) outcomes[name] = await statusOf(token);
    expect(outcomes).toEqual(Object.fromEntries(Object.keys(forged).map((name) => [name, 401])));
    expect(await statusOf(jwt)).toBe(200);
  });

  it('end with the other sessions, which is on record', async () => {
    const other = (await stage.call('GET', '/api/auth/token', { token: bearerOf(await stage.signIn(eve.email)) })).json.token;
    expect(await statusOf(other)).toBe(200);
    expect((await stage.call('POST', '/api/auth/revoke-other-sessions', { token: eve.token })).status).toBe(200);
    expect([await statusOf(other), await statusOf(eve.token)]).toEqual([401, 200]);
    expect((await stage.auditEntries()).filter(({ action }) => action === 'session.end_all')).toEqual([
      expect.objectContaining({ outcome: 'success', actor: `user:${eve.userId}`, ended: 1 }),
    ]);
  });

  it('cannot prolong themselves, and do not outlive their session by a request', async () => {
    expect((await stage.call('GET', '/api/auth/token', { token: jwt })).status).toBe(401);
    await stage.call('POST', '/api/auth/sign-out', { token: ada.token });
    expect(await statusOf(jwt)).toBe(401);
  });
});
