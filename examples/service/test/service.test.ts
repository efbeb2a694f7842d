/**
 * The main job end to end, against the service as a child process that began on an empty folder: setting up, signing in, letting
 * devices in and shutting them out, calling a provider through it; on both databases.
 */
import { createHmac, generateKeyPairSync, sign } from 'node:crypto';
import { join } from 'node:path';
import { connect } from 'node:net';
import { hashPassword } from 'better-auth/crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { verifyRecords } from '@keyguard/core/audit';
import { fromUtf8, utf8 } from '@keyguard/core/bytes';
import { createSigner } from '@keyguard/core/sign';
import { asRole, postgresAuditSink, postgresKeyRecords } from '@keyguard/storage-node/postgres';
import { auditOrigin } from '../src/audit/log.ts';
import { openDeploymentKeys } from '../src/keys/hierarchy.ts';
import { insertPerson, vouchingOf } from './people-rows.ts';
import {
  caller,
  backends,
  freePort,
  startService,
  startUpstream,
  type Backend,
  type CallAnswer,
  type Deployment,
  type FakeUpstream,
  type Running,
} from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const OTHER = { email: 'other@example.com', password: 'another long password here' };
const CANARY = 'sk-canary-4f1e9c77aa20b6d3e1';
const SECOND_CANARY = 'sk-canary-second-77aa20b6d3e1c0';
const ALLOWED_ORIGIN = 'https://app.example.com';


const base64Url = (value: object | string): string => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)).toString('base64url');

describe.each(backends())('the service on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let upstream: FakeUpstream;
  let service: Running;
  let port = 0;
  let admin = '';
  let other = '';
  const outputs: string[] = [];
  const secrets: string[] = [];
  const call = caller(() => service.origin);

  const start = async (environment: Record<string, string> = {}): Promise<void> => {
    service = await startService(deployment.folder, {
      ...deployment.environment,
      // The same after each start, because devices sign for it.
      PORT: String(port),
      OPENAI_API_KEY: CANARY,
      OPENAI_BASE_URL: upstream.baseUrl,
      KEYGUARD_ALLOWED_ORIGINS: ALLOWED_ORIGIN,
      LOG_LEVEL: 'trace',
      ...environment,
    });
  };
  const stop = async (): Promise<void> => {
    expect(await service.stop()).toBe(0);
    outputs.push(service.output());
  };
  const signIn = async ({ email, password }: typeof ADMIN): Promise<CallAnswer> => call('POST', '/api/auth/sign-in/email', { body: { email, password } });
  const bearerOf = (answer: CallAnswer): string => {
    expect(answer.status).toBe(200);
    const token = answer.headers.get('set-auth-token')!;
    secrets.push(token);
    return token;
  };
  const jwtOf = async (token: string): Promise<string> => (await call('GET', '/api/auth/token', { token })).json.token;
  const newCode = async (options: object = {}): Promise<{ id: string; code: string }> => {
    const answer = await call('POST', '/api/enrollment-codes', { token: admin, body: options });
    expect(answer.status).toBe(201);
    secrets.push(answer.json.code);
    return answer.json;
  };
  const newDevice = async (options: object = {}): Promise<{ client: KeyGuardClient; deviceId: string; status: string; keyId: string }> => {
    const { code } = await newCode(options);
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    return { client, ...(await client.enroll({ code, label: 'A laptop' })) };
  };
  const chat = async (client: KeyGuardClient, path = '/proxy/openai/v1/chat/completions'): Promise<CallAnswer> => {
    const response = await client.fetch(service.origin + path, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ model: 'gpt-5', messages: [{ role: 'user', content: 'Hello' }] }),
    });
    const text = await response.text();
    call.heard.push(text, ...[...response.headers].map(([name, value]) => `${name}: ${value}`));
    return { status: response.status, headers: response.headers, text, json: JSON.parse(text) };
  };
  const move = (deviceId: string, verb: string, token = admin): Promise<CallAnswer> => call('POST', `/api/devices/${deviceId}/${verb}`, { token });
  const auditEntries = async (): Promise<{ action: string; outcome: string; actor: string; code?: string }[]> => {
    const entries = [];
    let cursor = '';
    do {
      const { json } = await call('GET', `/api/audit?limit=200${cursor}`, { token: admin });
      entries.push(...json.data);
      cursor = json.has_more ? `&cursor=${json.next_cursor}` : '';
    } while (cursor !== '');
    return entries;
  };

  beforeAll(async () => {
    backend = await open();
    deployment = await backend.deploy();
    upstream = await startUpstream();
    port = await freePort();
    await start();
  });

  afterAll(async () => {
    await service.stop('SIGKILL');
    await upstream.stop();
    await backend.stop();
  });

  it('makes one administrator with the printed code, and none without or again', async () => {
    const { setupCode } = service;
    secrets.push(ADMIN.password, OTHER.password);
    expect(setupCode).toMatch(/^[0-9A-Z-]{31}$/);
    const wrong = await call('POST', '/api/setup', { body: { code: '00000-00000-00000-00000-00000-0', ...ADMIN } });
    expect([wrong.status, wrong.json.code]).toEqual([403, 'setup_code_invalid']);
    expect((await call('POST', '/api/setup', { body: { code: setupCode, ...ADMIN, password: 'short' } })).status).toBe(400);
    const made = await Promise.all([1, 2, 3].map((n) => call('POST', '/api/setup', { body: { code: setupCode, ...ADMIN, email: `admin${n === 1 ? '' : n}@example.com` } })));
    expect(made.map(({ status }) => status).toSorted()).toEqual([201, 409, 409]);
    // Which of the three it was is chance; the tests below need the first.
    const winner = made.find(({ status }) => status === 201)!.json.email;
    const again = await call('POST', '/api/setup', { body: { code: setupCode, ...ADMIN, email: 'late@example.com' } });
    expect([again.status, again.json.code]).toEqual([409, 'setup_complete']);
    ADMIN.email = winner;
  });

  it('signs in with a cookie that scripts cannot read and a bearer, and tells nothing about wrong ones', async () => {
    const signedIn = await signIn(ADMIN);
    admin = bearerOf(signedIn);
    const [sessionCookie, browserCookie] = signedIn.headers.getSetCookie();
    expect(browserCookie).toMatch(/^keyguard\.known_browser=[^;]+; Max-Age=15552000; Path=\/api\/auth; HttpOnly; SameSite=Strict$/);
    expect(sessionCookie).toMatch(/^keyguard\.session_token=[^;]+; Max-Age=86400; Path=\/; HttpOnly; SameSite=Strict$/);
    expect(Object.keys(signedIn.json)).toEqual(['user', 'second_factor']);
    const wrongPassword = await signIn({ ...ADMIN, password: 'not the password at all' });
    const nobody = await signIn({ email: 'nobody@example.com', password: 'not the password at all' });
    expect([wrongPassword.status, nobody.status]).toEqual([401, 401]);
    expect({ ...wrongPassword.json, request_id: '' }).toEqual({ ...nobody.json, request_id: '' });
    expect(wrongPassword.json.request_id).toMatch(/^req_/);
    expect((await call('GET', '/api/auth/get-session', { token: admin })).json.user.email).toBe(ADMIN.email);
  });

  it('starts again with everything that it knew, and prints no second code', async () => {
    await stop();
    await deployment.withDatabase(async (sql) => {
      const vouching = await vouchingOf(sql, { kind: 'file', path: join(deployment.folder, 'data', 'root.key') });
      await insertPerson(sql, vouching, { id: 'other', name: 'Other', email: OTHER.email, passwordHash: await hashPassword(OTHER.password) });
    });
    await start();
    expect(service.setupCode).toBeNull();
    expect((await call('GET', '/api/devices', { token: admin })).status).toBe(200);
    other = bearerOf(await signIn(OTHER));
  });

  it('takes the session as a bearer and as a JWT, and no stored, forged or ended one', async () => {
    const jwt = await jwtOf(admin);
    expect((await call('GET', '/api/devices', { token: jwt })).status).toBe(200);
    const [header, payload, signature] = jwt.split('.') as [string, string, string];
    const claims = JSON.parse(Buffer.from(payload, 'base64url').toString());
    const { kid } = JSON.parse(Buffer.from(header, 'base64url').toString());
    expect(claims.exp - claims.iat).toBe(900);
    const jwks = (await call('GET', '/.well-known/jwks.json')).json;
    expect(jwks.keys).toHaveLength(1);
    expect(jwks.keys[0].d).toBeUndefined();

    const foreign = generateKeyPairSync('ed25519').privateKey;
    const signed = (head: object, body: object): string => {
      const input = `${base64Url(head)}.${base64Url(body)}`;
      return `${input}.${sign(null, Buffer.from(input), foreign).toString('base64url')}`;
    };
    const hs256 = (secret: string): string => {
      const input = `${base64Url({ alg: 'HS256', kid })}.${payload}`;
      return `${input}.${createHmac('sha256', secret).update(input).digest('base64url')}`;
    };
    const forged: Record<string, string> = {
      'the stored token of a live session': admin.split('.')[0]!,
      'the stored token with another signature': `${admin.split('.')[0]!}.${'A'.repeat(43)}=`,
      'another token with the signature of this one': `${'A'.repeat(32)}.${admin.split('.')[1]!}`,
      'no algorithm': `${base64Url({ alg: 'none', kid })}.${payload}.`,
      'no algorithm, with a signature': `${base64Url({ alg: 'none', kid })}.${payload}.${signature}`,
      'a MAC with the public key': hs256(jwks.keys[0].x),
      'a MAC with the JWKS': hs256(JSON.stringify(jwks)),
      'a foreign key': signed({ alg: 'EdDSA', kid }, claims),
      'a foreign key with its own id': signed({ alg: 'EdDSA', kid: 'mine' }, claims),
      'a foreign key without an id': signed({ alg: 'EdDSA' }, claims),
      'a foreign key that it brings along': signed({ alg: 'EdDSA', jwk: generateKeyPairSync('ed25519').publicKey.export({ format: 'jwk' }) }, claims),
      'a key at an address': signed({ alg: 'EdDSA', kid, jku: 'http://127.0.0.1:1/jwks.json' }, claims),
      'other claims': `${header}.${base64Url({ ...claims, sub: 'other' })}.${signature}`,
      'a longer life': `${header}.${base64Url({ ...claims, exp: claims.exp + 9000 })}.${signature}`,
      'no signature': `${header}.${payload}.`,
      'half a signature': `${header}.${payload}.${signature.slice(0, 40)}`,
      'a text that is none': 'x.y.z',
      'an empty word': 'Bearer',
    };
    for (const [name, token] of Object.entries(forged)) {
      const answer = await call('GET', '/api/devices', { token });
      expect([name, answer.status, answer.json.code]).toEqual([name, 401, 'not_authenticated']);
    }
    for (const headers of [{ authorization: 'Basic YWRtaW46YWRtaW4=' }, { authorization: jwt }, { cookie: 'keyguard.session_token=nothing' }]) {
      expect((await call('GET', '/api/devices', { headers: headers as Record<string, string> })).status).toBe(401);
    }
    expect((await call('GET', '/api/devices')).status).toBe(401);

    const second = bearerOf(await signIn(ADMIN));
    const itsJwt = await jwtOf(second);
    expect((await call('GET', '/api/devices', { token: itsJwt })).status).toBe(200);
    expect((await call('POST', '/api/auth/sign-out', { token: second })).status).toBe(200);
    expect((await call('GET', '/api/devices', { token: itsJwt })).status).toBe(401);
    expect((await call('GET', '/api/devices', { token: second })).status).toBe(401);
    expect((await call('GET', '/api/devices', { token: admin })).status).toBe(200);
  });

  it('opens no other door of its sign-in library', async () => {
    for (const path of ['sign-up/email', 'update-user', 'delete-user', 'change-email', 'list-sessions', 'request-password-reset', 'sign-in/social', 'verify-password', 'update-session']) {
      for (const method of ['GET', 'POST']) {
        const body = method === 'POST' ? { body: { email: 'new@example.com', password: ADMIN.password, name: 'New', newPassword: ADMIN.password } } : {};
        expect((await call(method, `/api/auth/${path}`, body)).status).toBe(401);
        expect((await call(method, `/api/auth/${path}`, { token: admin, ...body })).status).toBe(404);
      }
    }
    expect((await signIn({ email: 'new@example.com', password: ADMIN.password })).status).toBe(401);
  });

  it('lets a cookie change something only from its own pages', async () => {
    const cookie = (await signIn(OTHER)).headers.get('set-cookie')!.split(';', 1)[0]!;
    expect((await call('GET', '/api/devices', { headers: { cookie } })).status).toBe(200);
    const attempts: [Record<string, string>, number][] = [
      [{ cookie }, 403],
      [{ cookie, origin: 'https://evil.example' }, 403],
      [{ cookie, origin: 'null' }, 403],
      [{ cookie, origin: service.origin.replace('http:', 'https:') }, 403],
      [{ cookie, origin: ALLOWED_ORIGIN }, 403],
      [{ cookie, origin: service.origin }, 201],
    ];
    for (const [headers, status] of attempts) {
      expect([headers['origin'], (await call('POST', '/api/enrollment-codes', { headers, body: {} })).status]).toEqual([headers['origin'], status]);
      if (status === 403) expect((await call('POST', '/api/auth/sign-out', { headers })).status).toBe(403);
    }
    expect((await call('POST', '/api/auth/sign-in/email', { headers: { origin: 'https://evil.example' }, body: OTHER })).status).toBe(403);
    expect((await call('GET', '/api/devices', { headers: { cookie } })).status).toBe(200);
  });

  it('lets an enrolled device call, and shuts it out and in as its administrator says', async () => {
    const { client, deviceId, keyId, status } = await newDevice({ label: 'From the code' });
    expect(status).toBe('active');
    const before = upstream.calls.length;
    const answer = await chat(client);
    expect([answer.status, answer.json.choices[0].message.content]).toEqual([200, 'Hello.']);
    expect((await chat(client, '/v1/chat/completions')).status).toBe(200);
    expect(upstream.calls.slice(before).map(({ authorization }) => authorization)).toEqual([`Bearer ${CANARY}`, `Bearer ${CANARY}`]);

    const listed = (await call('GET', '/api/devices', { token: admin })).json.data.find((device: { id: string }) => device.id === deviceId);
    expect(listed).toMatchObject({ id: deviceId, key_id: keyId, label: 'A laptop', status: 'active', project_id: 'default', intact: true });
    expect((await call('GET', `/api/devices/${deviceId}`, { token: admin })).json).toMatchObject({ id: deviceId, status: 'active' });

    const steps: [string, number, string, number, string | undefined][] = [
      ['approve', 409, 'active', 200, undefined],
      ['suspend', 200, 'suspended', 403, 'device_suspended'],
      ['suspend', 409, 'suspended', 403, 'device_suspended'],
      ['resume', 200, 'active', 200, undefined],
      ['revoke', 200, 'revoked', 403, 'device_revoked'],
      ['resume', 409, 'revoked', 403, 'device_revoked'],
      ['approve', 409, 'revoked', 403, 'device_revoked'],
    ];
    for (const [verb, moveStatus, status, callStatus, code] of steps) {
      const moved = await move(deviceId, verb);
      expect([verb, moved.status]).toEqual([verb, moveStatus]);
      if (moveStatus === 200) expect(moved.json).toMatchObject({ id: deviceId, status });
      expect((await client.status()).status).toBe(status);
      const called = await chat(client);
      expect([verb, called.status, called.json.error?.code]).toEqual([verb, callStatus, code]);
    }
    await expect(client.enroll({ code: (await newCode()).code })).resolves.toMatchObject({ deviceId, status: 'revoked' });
  });

  it('lets exactly one of 100 concurrent copies of a request reach the provider', async () => {
    const keyStore = memoryKeyStore();
    const client = new KeyGuardClient({ origin: service.origin, keyStore });
    await client.enroll({ code: (await newCode()).code });
    const sign = createSigner({ key: (await keyStore.get(new URL(service.origin).host))! });
    const target = '/proxy/openai/v1/chat/completions';
    const body = utf8(JSON.stringify({ model: 'gpt-5', messages: [{ role: 'user', content: 'Once' }] }));
    const headers: [string, string][] = [['content-type', 'application/json']];
    const signature = await sign({ method: 'POST', authority: new URL(service.origin).host, target, headers, body });
    const before = upstream.calls.length;
    const answers = await Promise.all(
      Array.from({ length: 100 }, () => call('POST', target, { headers: { ...Object.fromEntries(headers), ...signature }, body })),
    );
    expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
    expect(answers.filter(({ status, json }) => status === 401 && json.error.code === 'replay_detected')).toHaveLength(99);
    expect(upstream.calls.length).toBe(before + 1);
  });

  it('lets a device that must wait in only when it is approved', async () => {
    const { client, deviceId, status } = await newDevice({ auto_approve: false });
    expect(status).toBe('pending');
    expect((await chat(client)).json.error.code).toBe('device_pending');
    const pending = (await call('GET', '/api/devices?status=pending', { token: admin })).json.data;
    expect(pending.map(({ id }: { id: string }) => id)).toEqual([deviceId]);
    expect((await move(deviceId, 'approve')).json).toMatchObject({ status: 'active' });
    expect((await chat(client)).status).toBe(200);
  });

  it('takes a code as often as it says, and no revoked, old or invented one', async () => {
    const enroll = async (code: string): Promise<string> => {
      const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
      return client.enroll({ code }).then(({ status }) => status, ({ code: refusal }: { code: string }) => refusal);
    };
    const twice = await newCode({ max_uses: 2 });
    expect((await Promise.all([1, 2, 3, 4, 5].map(() => enroll(twice.code)))).toSorted()).toEqual(['active', 'active', 'enrollment_rejected', 'enrollment_rejected', 'enrollment_rejected']);
    const revoked = await newCode();
    expect((await call('POST', `/api/enrollment-codes/${revoked.id}/revoke`, { token: admin })).status).toBe(204);
    expect(await enroll(revoked.code)).toBe('enrollment_rejected');
    expect(await enroll('7K3QF-0MZ8T-7K3QF-0MZ8T-7K3QF-0')).toBe('enrollment_rejected');
    const codes = (await call('GET', '/api/enrollment-codes?limit=200', { token: admin })).json.data;
    expect(codes.find(({ id }: { id: string }) => id === twice.id)).toMatchObject({ uses: 2, max_uses: 2, revoked_at: null });
    expect(codes.find(({ id }: { id: string }) => id === revoked.id).revoked_at).not.toBeNull();
    expect(JSON.stringify(codes)).not.toContain(revoked.code);
  });

  it('hides what belongs to somebody else as if it were not there', async () => {
    const { client, deviceId } = await newDevice();
    const code = await newCode();
    for (const [method, path] of [
      ['GET', `/api/devices/${deviceId}`],
      ...['approve', 'suspend', 'resume', 'revoke'].map((verb) => ['POST', `/api/devices/${deviceId}/${verb}`]),
      ['POST', `/api/devices/${deviceId}/rotation-codes`],
      ['POST', `/api/enrollment-codes/${code.id}/revoke`],
    ] as [string, string][]) {
      const hidden = await call(method, path, { token: other });
      const absent = await call(method, path.replace(/[0-9a-f-]{36}/, '00000000-0000-4000-8000-000000000000'), { token: other });
      expect([path, hidden.status]).toEqual([path, 404]);
      expect({ ...hidden.json, request_id: '' }).toEqual({ ...absent.json, request_id: '' });
      expect((await call(method, path)).status).toBe(401);
    }
    expect((await call('GET', '/api/devices?limit=200', { token: other })).json.data).toEqual([]);
    expect((await call('GET', '/api/api-keys', { token: other })).json.data).toEqual([]);
    expect((await call('POST', '/api/api-keys', { token: other, body: { provider: 'openai', value: 'sk-of-somebody-else' } })).status).toBe(403);
    const theirs = (await call('GET', '/api/audit?limit=200', { token: other })).json.data;
    expect(theirs.length).toBeGreaterThan(0);
    expect(theirs.every(({ actor }: { actor: string }) => actor === 'user:other')).toBe(true);
    expect((await chat(client)).status).toBe(200);

    // What is theirs, they administer; approving is not theirs.
    const own = (await call('POST', '/api/enrollment-codes', { token: other, body: { auto_approve: false } })).json;
    secrets.push(own.code);
    const theirClient = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    const device = await theirClient.enroll({ code: own.code });
    expect((await move(device.deviceId, 'approve', other)).status).toBe(403);
    expect((await move(device.deviceId, 'approve')).status).toBe(200);
    expect((await move(device.deviceId, 'suspend', other)).status).toBe(200);
    expect((await move(device.deviceId, 'resume', other)).status).toBe(200);
    expect((await move(device.deviceId, 'suspend')).status).toBe(200);
    expect((await move(device.deviceId, 'resume', other)).status).toBe(403);
    expect((await move(device.deviceId, 'revoke', other)).status).toBe(200);
  });

  it('lets a device replace its key with a code of its owner or an administrator, once, and not without', async () => {
    const newRotationCode = async (deviceId: string, token: string, body: object = {}): Promise<CallAnswer> => {
      const answer = await call('POST', `/api/devices/${deviceId}/rotation-codes`, { token, body });
      if (answer.status === 201) secrets.push(answer.json.code);
      return answer;
    };
    const { code } = (await call('POST', '/api/enrollment-codes', { token: other, body: {} })).json;
    secrets.push(code);
    const keyStore = memoryKeyStore();
    const client = new KeyGuardClient({ origin: service.origin, keyStore });
    const { deviceId, keyId } = await client.enroll({ code });
    const host = new URL(service.origin).host;
    const old = (await keyStore.get(host))!;
    const pending = await newRotationCode(deviceId, other);
    expect([pending.status, pending.json.code]).toEqual([409, 'illegal_transition']);
    expect((await move(deviceId, 'approve')).status).toBe(200);

    const made = await newRotationCode(deviceId, other, { expires_in_s: 60 });
    expect(made.status).toBe(201);
    expect(made.headers.get('cache-control')).toBe('no-store');
    expect(Object.keys(made.json)).toEqual(['id', 'device_id', 'created_by', 'created_at', 'expires_at', 'code']);
    expect(made.json).toMatchObject({ device_id: deviceId, created_by: 'other' });
    const lifeMs = Date.parse(made.json.expires_at) - Date.parse(made.json.created_at);
    expect(lifeMs > 55_000 && lifeMs <= 60_000).toBe(true);
    for (const body of [{ expires_in_s: 9 }, { expires_in_s: 86_401 }, { expires_in_s: '60' }, { device_id: deviceId }, { max_uses: 2 }]) {
      expect((await newRotationCode(deviceId, other, body)).status).toBe(400);
    }
    // Neither none, nor one that was made up, nor one for enrollment; and what was refused used nothing up.
    const wrong = [undefined, '7K3QF-0MZ8T-7K3QF-0MZ8T-7K3QF-0', (await newCode()).code];
    for (const one of wrong) await expect(client.rotate({ code: one })).rejects.toMatchObject({ code: 'rotation_rejected' });
    expect((await client.status()).keyId).toBe(keyId);

    const rotated = await client.rotate({ code: made.json.code });
    expect(rotated).toMatchObject({ deviceId, status: 'active' });
    expect(rotated.keyId).not.toBe(keyId);
    expect((await call('GET', `/api/devices/${deviceId}`, { token: other })).json).toMatchObject({ key_id: rotated.keyId, status: 'active' });
    expect((await chat(client)).status).toBe(200);
    // The old key calls until its end, and rotates to nothing else.
    const stranger = await memoryKeyStore().getOrCreate('stranger');
    const formerStore = { ...memoryKeyStore(), get: async () => old, getPending: async () => stranger, getOrCreatePending: async () => stranger };
    const former = new KeyGuardClient({ origin: service.origin, keyStore: formerStore });
    expect((await chat(former)).status).toBe(200);
    const fresh = (await newRotationCode(deviceId, admin)).json.code;
    await expect(former.rotate({ code: fresh })).rejects.toMatchObject({ code: 'rotation_rejected' });
    await expect(client.rotate({ code: made.json.code })).rejects.toMatchObject({ code: 'rotation_rejected' });
    // A new code takes the place of the one before.
    const latest = (await newRotationCode(deviceId, admin)).json.code;
    await expect(client.rotate({ code: fresh })).rejects.toMatchObject({ code: 'rotation_rejected' });
    const third = await client.rotate({ code: latest });
    expect(new Set([keyId, rotated.keyId, third.keyId]).size).toBe(3);

    expect((await move(deviceId, 'revoke')).status).toBe(200);
    expect((await newRotationCode(deviceId, admin)).status).toBe(409);
    for (const one of [client, former]) expect((await chat(one)).json.error.code).toBe('device_revoked');
    const entries = (await auditEntries()) as unknown as Record<string, unknown>[];
    expect(entries.filter(({ action }) => action === 'device.key_rotated')).toMatchObject([
      { actor: `device:${deviceId}`, device_id: deviceId, key_id: third.keyId, old_key_id: rotated.keyId, with_code: true },
      { actor: `device:${deviceId}`, device_id: deviceId, key_id: rotated.keyId, old_key_id: keyId, with_code: true },
    ]);
  });

  it('refuses what is not well-formed with 4xx, and never with 500', async () => {
    const bytes = (text: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(text, 'latin1'));
    const bodies: [string, Uint8Array<ArrayBuffer>, number][] = [
      ['half', bytes('{"label":'), 400],
      ['not UTF-8', bytes('{"label":"\xff\xfe"}'), 400],
      ['NUL', bytes('{"label":"a\\u0000b"}'), 400],
      ['NUL in a name', bytes('{"\\u0000":1}'), 400],
      ['lone surrogate', bytes('{"label":"\\ud800"}'), 400],
      ['deep', bytes(`{"label":${'['.repeat(30_000)}${']'.repeat(30_000)}}`), 400],
      ['unknown field', bytes('{"owner_id":"x"}'), 400],
      ['prototype', bytes('{"__proto__":{"auto_approve":true}}'), 400],
      ['wrong type', bytes('{"max_uses":"many"}'), 400],
      ['out of range', bytes('{"max_uses":0}'), 400],
      ['not an object', bytes('[]'), 400],
      ['null', bytes('null'), 400],
      ['bidirectional label', bytes('{"label":"a\\u202eb"}'), 400],
      ['too large', bytes(`{"label":"${'a'.repeat(70_000)}"}`), 413],
    ];
    for (const [name, body, status] of bodies) {
      const answer = await call('POST', '/api/enrollment-codes', { token: admin, body });
      expect([name, answer.status]).toEqual([name, status]);
      expect(answer.headers.get('content-type')).toBe('application/problem+json; charset=utf-8');
      expect(answer.json).toMatchObject({ status, code: expect.any(String), title: expect.any(String), request_id: answer.headers.get('x-request-id') });
    }
    for (const headers of [{ 'content-type': 'text/plain' }, { 'content-type': 'application/x-www-form-urlencoded' }, { 'content-encoding': 'gzip' }]) {
      expect((await call('POST', '/api/enrollment-codes', { token: admin, headers: headers as Record<string, string>, body: {} })).status).toBe(415);
    }
    const paths: [string, string, number][] = [
      ['GET', '/api/devices?limit=0', 400],
      ['GET', '/api/devices?limit=201', 400],
      ['GET', '/api/devices?limit=1&limit=2', 400],
      ['GET', '/api/devices?cursor=%00', 400],
      ['GET', '/api/devices?cursor=bm90IGEgY3Vyc29y', 400],
      ['GET', '/api/devices?owner=x', 400],
      ['GET', "/api/devices?status=' OR 1=1--", 400],
      ['GET', '/api/audit?cursor=-1', 400],
      ['GET', '/api/audit?cursor=99999999999999999999', 400],
      ['GET', '/api/api-keys?cursor=W10', 400],
      ['GET', '/api/devices/%FF', 400],
      ['GET', '/api/devices/%00', 404],
      ['GET', "/api/devices/' OR 1=1--", 404],
      ['GET', '/api/Devices', 404],
      ['GET', '/api/devices/', 404],
      ['GET', '/api/nothing', 404],
      ['DELETE', '/api/devices', 405],
      ['GET', '/nothing', 404],
    ];
    for (const [method, path, status] of paths) {
      const answer = await call(method, path, { token: admin });
      expect([path, answer.status]).toEqual([path, status]);
      expect(answer.json.request_id).toBe(answer.headers.get('x-request-id'));
      expect(answer.text).not.toMatch(/node_modules|\.ts:|SQLSTATE/);
    }
  });

  it('lists in pages that end', async () => {
    for (let n = 0; n < 3; n += 1) await newCode({ label: `page ${n}` });
    const all = (await call('GET', '/api/enrollment-codes?limit=200', { token: admin })).json.data.map(({ id }: { id: string }) => id);
    const seen: string[] = [];
    let cursor: string | null = null;
    do {
      const query: string = cursor === null ? '' : `&cursor=${encodeURIComponent(cursor)}`;
      const { json } = await call('GET', `/api/enrollment-codes?limit=2${query}`, { token: admin });
      expect(json.has_more).toBe(json.next_cursor !== null);
      seen.push(...json.data.map(({ id }: { id: string }) => id));
      cursor = json.next_cursor;
    } while (cursor !== null);
    expect(seen).toEqual(all);
  });

  it('answers pages of the allowed origins only, before anything is verified', async () => {
    const preflight = (origin: string, path: string): Promise<CallAnswer> =>
      call('OPTIONS', path, { headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'content-type,x-keyguard-signature,x-stainless-os' } });
    for (const path of ['/proxy/openai/v1/chat/completions', '/v1/chat/completions', '/api/keyguard/enroll']) {
      const allowed = await preflight(ALLOWED_ORIGIN, path);
      expect([path, allowed.status, allowed.headers.get('access-control-allow-origin')]).toEqual([path, 204, ALLOWED_ORIGIN]);
      expect(allowed.headers.get('access-control-allow-headers')).toContain('x-keyguard-signature');
      expect(allowed.headers.get('access-control-allow-credentials')).toBeNull();
      for (const origin of ['https://evil.example', 'null', `${ALLOWED_ORIGIN}.evil.example`, ALLOWED_ORIGIN.replace('https', 'http')]) {
        const refused = await preflight(origin, path);
        expect([origin, refused.status, refused.headers.get('access-control-allow-origin')]).toEqual([origin, 403, null]);
      }
    }
    const refusal = await call('POST', '/v1/chat/completions', { headers: { origin: ALLOWED_ORIGIN }, body: {} });
    expect(refusal.headers.get('access-control-allow-origin')).toBe(ALLOWED_ORIGIN);
    expect(refusal.headers.get('access-control-expose-headers')).toContain('x-request-id');
    expect((await preflight(ALLOWED_ORIGIN, '/api/devices')).headers.get('access-control-allow-origin')).toBeNull();
  });

  it('lets only an administrator make codes for devices that nobody has to approve', async () => {
    expect(await call('POST', '/api/enrollment-codes', { token: other, body: { auto_approve: true } })).toMatchObject({ status: 403, json: { code: 'forbidden' } });
    const made = await call('POST', '/api/enrollment-codes', { token: other, body: {} });
    expect(made).toMatchObject({ status: 201, json: { auto_approve: false } });
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    expect(await client.enroll({ code: made.json.code })).toMatchObject({ status: 'pending' });
    expect((await chat(client)).json.error.code).toBe('device_pending');
    expect((await newCode({})) as object).toMatchObject({ auto_approve: true });
  });

  it('answers what is no HTTP, and no path, with a coded error too', async () => {
    const { port: at } = new URL(service.origin);
    const say = (text: string): Promise<string> =>
      new Promise((resolve, reject) => {
        let answer = '';
        connect(Number(at), '127.0.0.1')
          .setEncoding('latin1')
          .on('data', (chunk) => (answer += String(chunk)))
          .on('error', reject)
          .on('close', () => resolve(answer))
          .end(text);
      });
    const rest = 'HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n';
    const cases: [string, number][] = [
      [`GET http:// ${rest}`, 400],
      [`GET http://[ ${rest}`, 400],
      [`GET http://evil.example/api/devices ${rest}`, 400],
      [`OPTIONS * ${rest}`, 400],
      ['nonsense\r\n\r\n', 400],
      ['GET / HTTP/1.1\r\n\r\n', 400],
      [`GET / HTTP/1.1\r\nhost: x\r\na: ${'b'.repeat(40_000)}\r\n\r\n`, 431],
      ['POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n', 400],
      ['POST / HTTP/1.1\r\nhost: x\r\nexpect: something\r\nconnection: close\r\n\r\n', 417],
    ];
    for (const [text, status] of cases) {
      const answer = await say(text);
      expect([text, answer.split('\r\n', 1)[0]]).toEqual([text, expect.stringMatching(`^HTTP/1.1 ${status} `)]);
      expect(answer).toContain('application/problem+json');
      expect(answer).toContain('"code":"malformed_request"');
    }
  });

  it('uses the newest provider key, shows none, and stops at once when it is revoked', async () => {
    const { client } = await newDevice();
    expect((await chat(client)).status).toBe(200);
    const stored = await call('POST', '/api/api-keys', { token: admin, body: { provider: 'openai', name: 'Second', value: SECOND_CANARY } });
    expect([stored.status, stored.json]).toEqual([201, expect.objectContaining({ last4: SECOND_CANARY.slice(-4), is_default: true, is_active: true })]);
    await chat(client);
    expect(upstream.calls.at(-1)!.authorization).toBe(`Bearer ${SECOND_CANARY}`);
    const before = upstream.calls.length;
    expect((await call('POST', `/api/api-keys/${stored.json.id}/revoke`, { token: admin })).json).toMatchObject({ is_active: false, is_default: false });
    const refused = await chat(client);
    expect([refused.status, refused.json.error.code]).toEqual([403, 'provider_key_missing']);
    expect(upstream.calls.length).toBe(before);
    const keys = (await call('GET', '/api/api-keys', { token: admin })).json.data;
    expect(keys.map(({ source, is_active }: { source: string; is_active: boolean }) => [source, is_active])).toEqual([['api', false], ['environment', true]]);
    for (const value of ['short', 'with space in it', 'with\nnewline-in-it']) {
      expect((await call('POST', '/api/api-keys', { token: admin, body: { provider: 'openai', value } })).status).toBe(400);
    }
    expect((await call('POST', '/api/api-keys', { token: admin, body: { provider: 'evil', value: 'sk-12345678' } })).status).toBe(400);
  });

  it('takes over a key of the environment when it changes, and brings no revoked one back', async () => {
    const environmentKeys = async (): Promise<[string, boolean, boolean][]> =>
      (await call('GET', '/api/api-keys', { token: admin })).json.data
        .filter(({ source }: { source: string }) => source === 'environment')
        .map((key: { id: string; last4: string; is_active: boolean; is_default: boolean }) => [key.last4, key.is_active, key.is_default]);
    expect(await environmentKeys()).toEqual([[CANARY.slice(-4), true, false]]);
    await stop();
    const changed = `${CANARY}-changed-9999`;
    secrets.push(changed);
    await start({ OPENAI_API_KEY: changed });
    expect(await environmentKeys()).toEqual([['9999', true, true], [CANARY.slice(-4), false, false]]);
    const { client } = await newDevice();
    await chat(client);
    expect(upstream.calls.at(-1)!.authorization).toBe(`Bearer ${changed}`);
    const { id } = (await call('GET', '/api/api-keys', { token: admin })).json.data[0];
    expect((await call('POST', `/api/api-keys/${id}/revoke`, { token: admin })).status).toBe(200);
    await stop();
    await start({ OPENAI_API_KEY: changed });
    expect(await environmentKeys()).toEqual([['9999', false, false], [CANARY.slice(-4), false, false]]);
    expect((await chat(client)).json.error.code).toBe('provider_key_missing');
  });

  it('writes down what was done and what was refused', async () => {
    const entries = await auditEntries();
    const actions = new Set(entries.map(({ action, outcome, code }) => `${action} ${outcome}${outcome === 'refused' && code !== undefined ? ` ${code}` : ''}`));
    for (const expected of [
      'setup.administrator_created success',
      'setup.administrator_created refused setup_code_invalid',
      'auth.sign_in success',
      'auth.sign_in refused',
      'auth.sign_out success',
      'enrollment_code.create success',
      'enrollment_code.revoke success',
      'device.enroll success',
      'device.approve success',
      'device.approve refused forbidden',
      'device.suspend success',
      'device.resume success',
      'device.revoke success',
      'device.key_rotated success',
      'rotation_code.create success',
      'request.refused refused rotation_rejected',
      'request.refused refused device_revoked',
      'request.refused refused device_pending',
      'request.refused refused enrollment_rejected',
      'request.refused refused malformed_request',
      'llm.call success',
      'llm.call_ended success',
      'llm.call_refused refused provider_key_missing',
      'api_key.create success',
      'api_key.revoke success',
      'api_key.import success',
    ]) {
      expect(actions).toContain(expected);
    }
    const [{ ip, request_id: requestId }] = entries as unknown as [{ ip: string; request_id: string }];
    expect([ip, requestId]).toEqual([expect.stringMatching(/^(?:127\.0\.0\.1|::1)$/), expect.stringMatching(/^req_/)]);
  });

  it('slows down who guesses passwords', async () => {
    const statuses: number[] = [];
    for (let n = 0; n < 12; n += 1) statuses.push((await signIn({ ...OTHER, password: `guess number ${n} of many` })).status);
    expect(statuses.at(-1)).toBe(429);
    expect(statuses.filter((status) => status === 401).length).toBeLessThanOrEqual(10);
    expect((await signIn(OTHER)).headers.get('retry-after')).toMatch(/^[1-9]\d*$/);
  });

  it('keeps a chain that verifies from end to end, with every step of every device', async () => {
    await stop();
    await deployment.withDatabase(async (sql) => {
      const keys = await openDeploymentKeys(postgresKeyRecords(sql), { kind: 'file', path: join(deployment.folder, 'data', 'root.key') });
      const origin = auditOrigin(keys.deploymentId);
      const sink = postgresAuditSink(sql, { origin, macKey: keys.auditMac.macKey });
      const actions: string[] = [];
      async function* told(): AsyncGenerator<Awaited<ReturnType<typeof sink.head>> & object> {
        for await (const record of sink.read(0)) {
          const text = fromUtf8(record.bytes);
          call.heard.push(text);
          const { action, outcome } = JSON.parse(text);
          actions.push(`${action} ${outcome}`);
          yield record;
        }
      }
      const end = await verifyRecords(told(), { origin, keys: keys.auditMac.all });
      expect(end.seq).toBe(actions.length);
      expect(end.seq).toBe((await sink.head())!.seq + 1);
      const count = (action: string): number => actions.filter((each) => each === action).length;
      expect(count('setup.administrator_created success')).toBe(1);
      expect(count('device.approve success')).toBe(3);
      expect(count('device.key_rotated success')).toBe(2);
      expect(count('llm.call success')).toBe(count('llm.call_ended success'));
      const { rows } = await asRole(sql, 'kg_verifier', (tx) => tx.query<{ n: unknown }>('SELECT count(*) AS n FROM keyguard.devices'));
      expect(count('device.enroll success')).toBe(Number(rows[0]!.n));
    });
    await start();
  });

  it('never lets a provider key, a token, a code or a password out', async () => {
    await stop();
    const answers = call.heard.join('\n');
    const log = outputs.join('\n').replaceAll(/setup code:\s+\S+/g, '');
    const forms = (secret: string): string[] => [
      secret,
      encodeURIComponent(secret),
      JSON.stringify(secret).slice(1, -1),
      Buffer.from(secret).toString('base64').replace(/=+$/, ''),
      Buffer.from(secret).toString('base64url'),
      Buffer.from(secret).toString('hex'),
      [...secret].toReversed().join(''),
    ];
    expect(answers).toContain('chatcmpl-1');
    for (const key of [CANARY, SECOND_CANARY]) {
      for (const form of forms(key)) {
        expect(answers).not.toContain(form);
        expect(log).not.toContain(form);
      }
    }
    for (const secret of secrets) for (const form of forms(secret)) expect(log).not.toContain(form);
    await start();
  });
});
