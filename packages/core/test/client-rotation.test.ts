/** Rotation as the client sees it: every answer and no answer, at each step. What it must never do is to be left without a key. */
import { KeyGuardClient, UsageError, type KeyStore, type SigningKey } from '@keyguard/core';
import { memoryKeyStore } from '@keyguard/core/memory';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { startRotationServer, type Answer, type RotationServer } from './rotation-server.ts';

const NAME = 'device';

let server: RotationServer;
let keyStore: KeyStore;
let first: SigningKey;

beforeEach(async () => {
  server = await startRotationServer();
  keyStore = memoryKeyStore();
  first = await keyStore.getOrCreate(NAME);
  await server.adopt(first.publicKey);
  server.codes.add('CODE');
});
afterEach(() => server.close());

/** Each is a start of the program, or a tab of its own: nothing is shared but the store. */
function client(options: Partial<ConstructorParameters<typeof KeyGuardClient>[0]> = {}): KeyGuardClient {
  return new KeyGuardClient({ origin: server.origin, keyStore, keyName: NAME, ...options });
}

const routes = (): string[] => server.received.map(({ route }) => route);
const keyId = async (): Promise<string | undefined> => (await keyStore.get(NAME))?.keyId;
const pendingId = async (): Promise<string | undefined> => (await keyStore.getPending(NAME))?.keyId;

/** The device can call, with the one key that the server has for it, and nothing is left half done. */
async function expectOneKey(guard: KeyGuardClient = client()): Promise<void> {
  server.retire();
  const response = await guard.fetch(`${server.origin}/a`, { method: 'POST', body: 'x' });
  expect(response.status).toBe(200);
  expect(await response.json()).toEqual({ signedBy: await keyId() });
  expect(server.currentKeys()).toEqual([await keyId()]);
}

describe('rotate', () => {
  it('replaces the key, proves the new one, and forgets the old one', async () => {
    const guard = client();
    const device = await guard.rotate({ code: 'CODE' });
    expect(device).toEqual({ deviceId: 'd', keyId: await keyId(), status: 'active' });
    expect(device.keyId).not.toBe(first.keyId);
    expect(await pendingId()).toBeUndefined();
    expect(routes()).toEqual(['rotate']);
    const { keyId: signedBy, body, headers } = server.received[0]!;
    expect(signedBy).toBe(first.keyId);
    expect(headers['content-type']).toBe('application/json');
    const sent = JSON.parse(Buffer.from(body).toString()) as Record<string, unknown>;
    expect(Object.keys(sent)).toEqual(['jwk', 'proof', 'code']);
    expect(Object.keys(sent['jwk'] as object)).toEqual(['crv', 'kty', 'x', 'y']);
    expect(sent['proof']).toMatch(/^[A-Za-z0-9+/]{86}==$/);
    expect(JSON.stringify(headers)).not.toContain('CODE');
    await expectOneKey(guard);
  });

  it('sends no code where it is given none', async () => {
    await expect(client().rotate()).rejects.toMatchObject({ code: 'rotation_rejected' });
    expect(Object.keys(JSON.parse(Buffer.from(server.received[0]!.body).toString()) as object)).toEqual(['jwk', 'proof']);
  });

  it('binds the proof to the attempt: after a correction of the clock it is another', async () => {
    server.timeSeconds = 1_800_000_000;
    const guard = client({ clock: { nowMs: () => 1_800_000_000_000 - 3_600_000 } });
    await guard.rotate({ code: 'CODE' });
    expect(routes()).toEqual(['rotate', 'rotate']);
    const proofs = server.received.map(({ body }) => (JSON.parse(Buffer.from(body).toString()) as { proof: string }).proof);
    expect(proofs[0]).not.toBe(proofs[1]);
    await expectOneKey(guard);
  });

  it('demands a key that could be replaced', async () => {
    await expect(client({ keyName: 'another' }).rotate({ code: 'CODE' })).rejects.toMatchObject({ code: 'not_enrolled' });
    expect(server.received).toHaveLength(0);
  });

  it('is done once for all who ask for it at once, and again for who asks later', async () => {
    const guard = client();
    const devices = await Promise.all([guard.rotate({ code: 'CODE' }), guard.rotate({ code: 'CODE' }), guard.rotate()]);
    expect(new Set(devices.map((device) => device.keyId)).size).toBe(1);
    expect(routes()).toEqual(['rotate']);
    server.codes.add('NEXT');
    expect((await guard.rotate({ code: 'NEXT' })).keyId).not.toBe(devices[0]!.keyId);
    await expect(guard.rotate({ code: 'NEXT' })).rejects.toMatchObject({ code: 'rotation_rejected' });
    await expectOneKey(guard);
  });

  it.each([2, 5])('ends with one key when %i clients rotate over one store, each with what it was given', async (count) => {
    for (let i = 0; i < count; i += 1) server.codes.add(`CODE-${i}`);
    const guards = Array.from({ length: count }, () => client());
    const devices = await Promise.all(guards.map((guard, i) => guard.rotate({ code: `CODE-${i}` })));
    for (const device of devices) expect(device.keyId).not.toBe(first.keyId);
    for (const guard of guards) await expectOneKey(guard);
  });

  it('ends with one key when another client has only a code that is used up', async () => {
    const settled = await Promise.allSettled([client().rotate({ code: 'CODE' }), client().rotate({ code: 'CODE' }), client().rotate({ code: 'WRONG' })]);
    expect(settled.some(({ status }) => status === 'fulfilled')).toBe(true);
    expect(await keyId()).not.toBe(first.keyId);
    await expectOneKey();
  });
});

const problem = (status: number, code: string): Answer => ({ status, body: { code } });

// What may come back in place of the truth, and as what the caller sees it when nothing was rotated.
const SPOILED: [string, Answer | null, object][] = [
  ['no answer', null, { name: 'UnavailableError', code: 'server_unavailable' }],
  ['a 500', { status: 500, body: { code: 'internal' } }, { code: 'server_unavailable' }],
  ['a 502 of a proxy', { status: 502, body: '<html>Bad gateway</html>' }, { code: 'server_unavailable' }],
  ['a 503', { ...problem(503, 'store_unavailable'), headers: { 'retry-after': '2' } }, { code: 'server_unavailable', retryAfterMs: 2000 }],
  ['a 404', { status: 404, body: 'nothing here' }, { code: 'server_unavailable' }],
  ['a 200 that is no device', { status: 200, body: '<html>Welcome to the hotel</html>' }, { code: 'server_unavailable' }],
  ['a 200 of another key', { status: 200, body: { device_id: 'd', key_id: 'A'.repeat(43), status: 'active' } }, { code: 'server_unavailable' }],
  ['a 204', { status: 204, body: '' }, { code: 'server_unavailable' }],
  ['replay_detected', problem(401, 'replay_detected'), { name: 'RejectedError', code: 'replay_detected' }],
  ['signature_invalid', problem(401, 'signature_invalid'), { name: 'RejectedError', code: 'signature_invalid' }],
  ['rotation_rejected', problem(403, 'rotation_rejected'), { name: 'RejectedError', code: 'rotation_rejected' }],
  ['device_suspended', problem(403, 'device_suspended'), { name: 'RejectedError', code: 'device_suspended' }],
  ['rate_limited', { ...problem(429, 'rate_limited'), headers: { 'retry-after': '7' } }, { code: 'rate_limited', retryAfterMs: 7000 }],
  ['malformed_request', problem(400, 'malformed_request'), { name: 'RejectedError', code: 'malformed_request' }],
];

describe.each(SPOILED)('when %s comes back from a rotation', (_name, answer, seen) => {
  it('that was carried out: finds out, and has the new key', async () => {
    server.faults.push({ route: 'rotate', carriedOut: true, answer });
    const guard = client();
    const device = await guard.rotate({ code: 'CODE' });
    expect(device).toMatchObject({ keyId: await keyId(), status: 'active' });
    expect(device.keyId).not.toBe(first.keyId);
    expect(await pendingId()).toBeUndefined();
    await expectOneKey(guard);
  });

  it('that was not carried out: says so, goes on with the old key, and keeps the new one for the next try', async () => {
    server.faults.push({ route: 'rotate', carriedOut: false, answer });
    const guard = client();
    await expect(guard.rotate({ code: 'CODE' })).rejects.toMatchObject(seen);
    expect(await keyId()).toBe(first.keyId);
    const pending = await pendingId();
    expect(pending).toBeDefined();
    await expectOneKey(guard);
    expect((await client().rotate({ code: 'CODE' })).keyId).toBe(pending);
    await expectOneKey();
  });

  it.each([
    ['at once', false],
    ['after the old key has ended', true],
  ])('that was carried out, and the server cannot be asked: keeps both keys, and a next start goes on %s', async (_when, late) => {
    server.faults.push({ route: 'rotate', carriedOut: true, answer }, { route: 'status', carriedOut: false, answer: null });
    await expect(client().rotate({ code: 'CODE' })).rejects.toMatchObject(seen);
    expect(await keyId()).toBe(first.keyId);
    const pending = await pendingId();
    expect(server.currentKeys()).toEqual([pending]);
    if (late) server.retire();
    const guard = client();
    const response = await guard.fetch(`${server.origin}/a`, { method: 'POST', body: 'x' });
    expect(await response.json()).toEqual({ signedBy: late ? pending : first.keyId });
    expect(Buffer.from(server.received.at(-1)!.body).toString()).toBe('x');
    // Needs no other code: it is the same rotation.
    if (!late) expect((await guard.rotate()).keyId).toBe(pending);
    expect(await keyId()).toBe(pending);
    expect(await pendingId()).toBeUndefined();
    await expectOneKey(guard);
  });

  it('that is carried out only later, when its sender has given up: the device goes on all the same', async () => {
    server.faults.push({ route: 'rotate', carriedOut: 'later', answer });
    await expect(client().rotate({ code: 'CODE' })).rejects.toMatchObject(seen);
    // The server was asked in between, and did not know the new key.
    expect(routes()).toEqual(['rotate', 'status']);
    await server.deliver();
    expect(server.currentKeys()).not.toEqual([first.keyId]);
    await expectOneKey();
  });
});

describe('a pending key', () => {
  const keyExists: Answer = problem(409, 'key_exists');

  it('is thrown away only where the server says that it can never be the key, and has the old one', async () => {
    server.faults.push({ route: 'rotate', carriedOut: false, answer: keyExists });
    await expect(client().rotate({ code: 'CODE' })).rejects.toMatchObject({ code: 'key_exists' });
    expect(routes()).toEqual(['rotate', 'status', 'status']);
    expect(await pendingId()).toBeUndefined();
    expect(await keyId()).toBe(first.keyId);
    await client().rotate({ code: 'CODE' });
    await expectOneKey();
  });

  it.each<[string, (Answer | null)[]]>([
    ['cannot be asked about the new key', [null]],
    ['fails to say whether it knows the new key', [problem(503, 'store_unavailable')]],
    ['cannot be asked about the old key', [problem(401, 'signature_invalid'), null]],
    ['does not know the old key either', [problem(401, 'signature_invalid'), problem(401, 'signature_invalid')]],
    ['has the old key as one that was replaced', [problem(401, 'signature_invalid'), { status: 200, body: { device_id: 'd', key_id: 'OLD', status: 'active', key_state: 'retiring' } }]],
  ])('is kept when the server says key_exists and %s', async (_name, answers) => {
    server.faults.push({ route: 'rotate', carriedOut: false, answer: keyExists });
    for (const answer of answers) {
      const body = JSON.parse(JSON.stringify(answer?.body ?? null).replace('OLD', first.keyId)) as unknown;
      server.faults.push({ route: 'status', carriedOut: false, answer: answer && { ...answer, body } });
    }
    await expect(client().rotate({ code: 'CODE' })).rejects.toMatchObject({ code: 'key_exists' });
    expect(await pendingId()).toBeDefined();
    expect(await keyId()).toBe(first.keyId);
  });

  it('becomes the key when the server says key_exists because it is', async () => {
    server.faults.push({ route: 'rotate', carriedOut: true, answer: keyExists });
    await client().rotate({ code: 'CODE' });
    await expectOneKey();
  });

  it('is not promoted for an answer about another, nor for one that the server has retired', async () => {
    const pending = await keyStore.getOrCreatePending(NAME);
    server.keys.set(pending.keyId, { publicKey: pending.publicKey, state: 'retired' });
    server.keys.get(first.keyId)!.state = 'retired';
    expect((await client().fetch(`${server.origin}/a`)).status).toBe(401);
    expect(await keyId()).toBe(first.keyId);
    expect(await pendingId()).toBe(pending.keyId);
  });

  it('that the server has and has replaced already is not promoted but thrown away', async () => {
    const pending = await keyStore.getOrCreatePending(NAME);
    server.keys.set(pending.keyId, { publicKey: pending.publicKey, state: 'retired' });
    await expect(client().rotate({ code: 'CODE' })).rejects.toMatchObject({ code: 'key_exists' });
    expect(routes()).toEqual(['rotate', 'status', 'status']);
    expect(await keyId()).toBe(first.keyId);
    expect(await pendingId()).toBeUndefined();
    await expectOneKey();
  });

  it('that another tab promoted and replaced in turn is not what is answered: the key of now is', async () => {
    const overtaken: KeyStore = {
      ...keyStore,
      async promote(name, pendingKeyId) {
        await keyStore.promote(name, pendingKeyId);
        const next = await keyStore.getOrCreatePending(name);
        server.keys.get(pendingKeyId)!.state = 'retiring';
        await server.adopt(next.publicKey);
        await keyStore.promote(name, next.keyId);
        return false;
      },
    };
    expect(await client({ keyStore: overtaken }).rotate({ code: 'CODE' })).toMatchObject({ keyId: await keyId(), status: 'active' });
    await expectOneKey();
  });

  it('is made and nothing is sent where the request cannot be signed, which is told as what it is', async () => {
    await expect(client({ basePath: '/a%2Fb' }).rotate({ code: 'CODE' })).rejects.toMatchObject({ name: 'UsageError', code: 'target_unsupported' });
    expect(server.received).toHaveLength(0);
    await client().rotate({ code: 'CODE' });
    await expectOneKey();
  });

  it('that the store fails to promote stays pending, and the next start promotes it', async () => {
    const failing = { ...keyStore, promote: async () => Promise.reject(new UsageError('key_store_unusable', 'no room')) };
    await expect(client({ keyStore: failing }).rotate({ code: 'CODE' })).rejects.toMatchObject({ code: 'key_store_unusable' });
    const pending = await pendingId();
    expect(server.currentKeys()).toEqual([pending]);
    await expectOneKey();
    expect(await keyId()).toBe(pending);
  });

  it('of a program that died before it sent anything is the one that the next one rotates to', async () => {
    const pending = await keyStore.getOrCreatePending(NAME);
    expect((await client().rotate({ code: 'CODE' })).keyId).toBe(pending.keyId);
    await expectOneKey();
  });

  it('is forgotten with the key', async () => {
    await keyStore.getOrCreatePending(NAME);
    await client().forget();
    expect(await keyId()).toBeUndefined();
    expect(await pendingId()).toBeUndefined();
  });
});

describe('signature_invalid', () => {
  /** Another tab rotates, and the time in which the old key still signs is over. */
  async function rotateElsewhere(): Promise<void> {
    const elsewhere = await keyStore.getOrCreatePending(NAME);
    server.keys.get(first.keyId)!.state = 'retired';
    await server.adopt(elsewhere.publicKey);
    await keyStore.promote(NAME, elsewhere.keyId);
  }

  /** A store that shows what another tab changed only from the second look on: the first read came before the change. */
  function stale(old: SigningKey): KeyStore {
    let reads = 0;
    return { ...keyStore, get: async (name) => ((reads += 1) === 1 ? old : keyStore.get(name)) };
  }

  it.each(['fetch', 'status', 'enroll', 'rotate'] as const)('makes %s read its store again, once, and go on with the key that is there now', async (verb) => {
    await rotateElsewhere();
    const guard = client({ keyStore: stale(first) });
    const now = await keyId();
    if (verb === 'fetch') {
      const response = await guard.fetch(`${server.origin}/a`, { method: 'POST', body: 'héllo' });
      expect(await response.json()).toEqual({ signedBy: now });
      expect(server.received.map(({ body }) => Buffer.from(body).toString())).toEqual(['héllo', 'héllo']);
    } else {
      expect(await guard[verb]()).toMatchObject({ keyId: now });
    }
    expect(server.received.map((one) => one.keyId)).toEqual([first.keyId, now]);
  });

  it('is handed on after one more try', async () => {
    await rotateElsewhere();
    server.keys.get((await keyId())!)!.state = 'retired';
    const response = await client({ keyStore: stale(first) }).fetch(`${server.origin}/a`);
    expect(response.status).toBe(401);
    expect(await response.json()).toMatchObject({ code: 'signature_invalid' });
    expect(routes()).toEqual(['call', 'call']);
  });

  it('is handed on, readable, where there is no other key, and nothing more is asked', async () => {
    server.keys.clear();
    const response = await client().fetch(`${server.origin}/a`);
    expect(await response.json()).toMatchObject({ code: 'signature_invalid' });
    expect(routes()).toEqual(['call']);
    await expect(client().status()).rejects.toMatchObject({ code: 'signature_invalid' });
  });

  it('is handed on where the server does not know the pending key, which is kept', async () => {
    const pending = await keyStore.getOrCreatePending(NAME);
    server.keys.clear();
    expect((await client().fetch(`${server.origin}/a`)).status).toBe(401);
    server.faults.push({ route: 'status', carriedOut: false, answer: null });
    expect((await client().fetch(`${server.origin}/a`)).status).toBe(401);
    expect(await pendingId()).toBe(pending.keyId);
    expect(await keyId()).toBe(first.keyId);
  });

  /** The server has rotated; this device does not know yet. */
  async function rotateUnseen(): Promise<SigningKey> {
    const pending = await keyStore.getOrCreatePending(NAME);
    server.keys.get(first.keyId)!.state = 'retired';
    await server.adopt(pending.publicKey);
    return pending;
  }

  it('makes a hundred calls that are refused at once ask once, and all of them go through', async () => {
    const pending = await rotateUnseen();
    const guard = client();
    const responses = await Promise.all(Array.from({ length: 100 }, () => guard.fetch(`${server.origin}/a`)));
    for (const response of responses) expect(await response.json()).toEqual({ signedBy: pending.keyId });
    expect(routes().filter((route) => route === 'status')).toEqual(['status']);
    expect(await pendingId()).toBeUndefined();
  });

  it.each(['status', 'enroll'] as const)('is not even needed by %s: the server says that the key was replaced', async (verb) => {
    const pending = await rotateUnseen();
    server.keys.get(first.keyId)!.state = 'retiring';
    expect(await client()[verb]()).toMatchObject({ keyId: pending.keyId, status: 'active' });
    expect(await keyId()).toBe(pending.keyId);
    expect(routes()).not.toContain('enroll');
  });

  it.each(['status', 'enroll'] as const)('is what %s tells of a key that was replaced by one that is not here: an active device is of no use with it', async (verb) => {
    await server.adopt((await memoryKeyStore().getOrCreate('elsewhere')).publicKey);
    const pending = await keyStore.getOrCreatePending(NAME);
    server.keys.get(first.keyId)!.state = 'retiring';
    expect(await client()[verb]()).toMatchObject({ keyId: first.keyId, status: 'active' });
    server.retire();
    await expect(client()[verb]()).rejects.toMatchObject({ name: 'RejectedError', code: 'signature_invalid', message: expect.stringContaining('forget()') as string });
    // What to forget is for a person to say.
    expect(await keyId()).toBe(first.keyId);
    expect(await pendingId()).toBe(pending.keyId);
  });

  it('is handed on, and the request not sent again, where the pending key is gone before it could be promoted', async () => {
    await rotateUnseen();
    const losing: KeyStore = { ...keyStore, promote: (name, pendingKeyId) => keyStore.discard(name, pendingKeyId).then(() => false) };
    expect((await client({ keyStore: losing }).fetch(`${server.origin}/a`, { method: 'POST', body: 'x' })).status).toBe(401);
    expect(routes()).toEqual(['call', 'status']);
  });

  it('makes one client ask again where it could not be told before', async () => {
    const pending = await rotateUnseen();
    const guard = client();
    server.faults.push({ route: 'status', carriedOut: false, answer: null });
    expect((await guard.fetch(`${server.origin}/a`)).status).toBe(401);
    expect(await (await guard.fetch(`${server.origin}/a`)).json()).toEqual({ signedBy: pending.keyId });
  });

  it('is understood in the dialect of a provider', async () => {
    const pending = await rotateUnseen();
    server.faults.push({ route: 'call', carriedOut: false, answer: { status: 401, body: { error: { code: 'signature_invalid', message: 'm' } } } });
    expect(await (await client().fetch(`${server.origin}/a`)).json()).toEqual({ signedBy: pending.keyId });
  });

  it.each<[string, Answer]>([
    ['another 401', { status: 401, body: { error: { code: 'invalid_api_key' } } }],
    ['a 401 that is no JSON', { status: 401, body: 'signature_invalid' }],
    ['a 401 that does not say that it is JSON', { status: 401, body: '{"code":"signature_invalid"}' }],
    ['another status', { status: 403, body: { code: 'signature_invalid' } }],
    ['a success', { status: 200, body: { code: 'signature_invalid' } }],
  ])('is not seen in %s: it is handed on as it came, nothing is asked, and nothing sent twice', async (_name, answer) => {
    // There is another key to sign with, if one were looked for.
    const pending = await rotateUnseen();
    server.faults.push({ route: 'call', carriedOut: false, answer });
    const response = await client().fetch(`${server.origin}/a`, { method: 'POST', body: 'x' });
    expect({ status: response.status, body: await response.text() }).toEqual({ status: answer.status, body: typeof answer.body === 'string' ? answer.body : JSON.stringify(answer.body) });
    expect(routes()).toEqual(['call']);
    expect(await pendingId()).toBe(pending.keyId);
  });

  it('is not looked for where a server that replaces no keys says nothing of their states', async () => {
    await keyStore.getOrCreatePending(NAME);
    server.faults.push({ route: 'status', carriedOut: false, answer: { status: 200, body: { device_id: 'd', key_id: first.keyId, status: 'active' } } });
    expect(await client().status()).toEqual({ deviceId: 'd', keyId: first.keyId, status: 'active' });
    expect(routes()).toEqual(['status']);
  });
});
