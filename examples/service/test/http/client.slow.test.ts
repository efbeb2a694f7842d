/**
 * A client that somebody else's generator makes of the live document calls every operation, each with success. What is sent comes
 * from the rows of the matrix where these succeed for somebody, and from `DRIVES` where they do not; a new operation with neither
 * fails here by name.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createClient as generate } from '@hey-api/openapi-ts';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { codeOfStep, stepAt } from '../../src/auth/totp.ts';
import { ROWS, type Call } from '../matrix/rows.ts';
import { PRINCIPALS, signIn, startInProcess, type Person } from '../matrix/stage.ts';
import { makeWorld, newDevice, newEnrollmentCode, newSecret, type World } from '../matrix/world.ts';
import { operationsIn } from './samples.ts';

interface Sent {
  readonly path?: Readonly<Record<string, string>>;
  readonly query?: Readonly<Record<string, string>>;
  readonly body?: unknown;
  readonly headers?: Readonly<Record<string, string>>;
  readonly baseUrl?: string;
  readonly parseAs?: 'text';
  readonly fetch?: typeof fetch;
}

type Generated = Readonly<Record<string, (sent: Sent) => Promise<{ readonly data?: unknown; readonly error?: unknown; readonly response: Response }>>>;

/** What a drive sends, and with which token where it is not the administrator's. */
interface Drive extends Call {
  readonly token?: string;
}

const PASSWORD = 'a long and quiet password';

async function newPerson({ stage }: World): Promise<Person> {
  await stage.sql.query('DELETE FROM keyguard_auth.rate_limits');
  return stage.newPerson('somebody');
}

/** A person with a second factor that is set up, and codes of it that were not used. */
async function withFactor(world: World): Promise<{ readonly person: Person; readonly codes: readonly string[] }> {
  const person = await newPerson(world);
  const { token } = person;
  const secret = await begin(world, person);
  const activated = await world.stage.call('POST', '/api/auth/second-factor/activate', { token, body: { code: codeOfStep(secret, stepAt(Date.now())) } });
  return { person: { ...person, token: activated.headers.get('set-auth-token')! }, codes: activated.json.backup_codes as string[] };
}

const BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';

async function begin({ stage }: World, { token }: Person): Promise<Uint8Array> {
  const { json } = await stage.call('POST', '/api/auth/second-factor', { token, body: { password: PASSWORD } });
  const bits = [...(json.secret as string)].map((character) => BASE32.indexOf(character).toString(2).padStart(5, '0')).join('');
  return Uint8Array.from(bits.match(/.{8}/g)!, (byte) => Number.parseInt(byte, 2));
}

async function deviceAfter(world: World, ...verbs: readonly string[]): Promise<Drive> {
  const id = await newDevice(world);
  for (const verb of verbs) await world.make('administrator', `/api/devices/${id}/${verb}`);
  return { params: { id } };
}

const invitation = (world: World): Promise<Record<string, string>> => world.make('administrator', '/api/invitations', { email: `guest-${Date.now()}@example.com` });

/** Somebody who administers, as the database has it after two have asked for it. */
async function newAdministrator(world: World): Promise<Person> {
  const person = await newPerson(world);
  const ask = (token: string): ReturnType<World['stage']['call']> => world.stage.call('PUT', `/api/users/${person.userId}/administrator`, { token });
  const asked = await ask(world.tokenOf('administrator')!);
  if (asked.status === 202) {
    const known = seconds.get(world);
    if (known !== undefined) await ask(known.token);
  }
  if (!seconds.has(world)) seconds.set(world, person);
  return person;
}

/** Whom the first administrator of a world made alone, and who is asked from then on. */
const seconds = new Map<World, Person>();

const DRIVES: Readonly<Record<string, (world: World) => Promise<Drive>>> = {
  signIn: async (world) => ({ body: { email: (await newPerson(world)).email, password: PASSWORD } }),
  signOut: async (world) => ({ token: (await newPerson(world)).token }),
  changePassword: async (world) => ({ token: (await newPerson(world)).token, body: { current_password: PASSWORD, new_password: `${PASSWORD}, anew` } }),
  beginSecondFactor: async (world) => ({ token: (await newPerson(world)).token, body: { password: PASSWORD } }),
  async activateSecondFactor(world) {
    const person = await newPerson(world);
    return { token: person.token, body: { code: codeOfStep(await begin(world, person), stepAt(Date.now())) } };
  },
  async stepUp(world) {
    const { person, codes } = await withFactor(world);
    return { token: person.token, body: { code: codes[0] } };
  },
  async renewBackupCodes(world) {
    const { person, codes } = await withFactor(world);
    return { token: person.token, body: { code: codes[0] } };
  },
  async disableSecondFactor(world) {
    const { person, codes } = await withFactor(world);
    return { token: person.token, body: { password: PASSWORD, code: codes[0] } };
  },
  removeSecondFactor: async (world) => ({ params: { id: (await withFactor(world)).person.userId } }),
  endOtherSessions: async (world) => ({ token: (await newPerson(world)).token }),
  endSessionsOfUser: async (world) => ({ params: { id: (await newPerson(world)).userId } }),
  revokeInvitation: async (world) => ({ params: { id: (await invitation(world))['id']! } }),
  acceptInvitation: async (world) => ({ body: { token: (await invitation(world))['token'], password: PASSWORD, name: 'A guest' } }),
  async acceptPasswordReset(world) {
    const { userId } = await newPerson(world);
    const path = `/api/users/${userId}/password-reset`;
    const second = seconds.get(world);
    const body = { token: (await world.make('administrator', path))['token'], password: `${PASSWORD}, anew` };
    // Of each of two, where there are two.
    return { body: second === undefined ? body : { ...body, second_token: (await world.stage.call('POST', path, { token: second.token, body: {} })).json.token as string } };
  },
  suspendDevice: (world) => deviceAfter(world, 'approve'),
  resumeDevice: (world) => deviceAfter(world, 'approve', 'suspend'),
  createRotationCode: async (world) => ({ ...(await deviceAfter(world, 'approve')), body: {} }),
  openSecretLink: async (world) => ({ params: { token: (await world.make('owner', `/api/secrets/${await newSecret(world)}/links`, {}))['token']! }, body: {} }),
  async getKekRotation(world) {
    await world.make('administrator', '/api/operations/kek-rotations');
    const { json } = await world.stage.call('GET', '/api/operations/kek-rotations', { token: world.tokenOf('administrator')! });
    return { params: { id: json.data[0].id as string } };
  },
  async approveInvitation(world) {
    const second = await newAdministrator(world);
    return { token: second.token, params: { id: (await invitation(world))['id']! } };
  },
  async withdrawAdministratorRequest(world) {
    await newAdministrator(world);
    const { userId } = await newPerson(world);
    const { json } = await world.stage.call('PUT', `/api/users/${userId}/administrator`, { token: world.tokenOf('administrator')! });
    return { params: { id: json.id as string } };
  },
  makeAdministrator: async (world) => ({ params: { id: (await newPerson(world)).userId } }),
  async unmakeAdministrator(world) {
    const { userId, token } = await newAdministrator(world);
    return { token, params: { id: userId } };
  },
  disableUser: async (world) => ({ params: { id: (await newPerson(world)).userId } }),
  enableUser: async (world) => ({ params: { id: (await newPerson(world)).userId } }),
};

/** Driven elsewhere, each for a reason. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  setUp: 'The service is set up once: the last test here does it, on a service of its own.',
  startOidcSignIn: 'A browser follows it to a provider of identities: people/oidc.test.ts has one.',
  finishOidcSignIn: 'A browser comes back with it from there.',
  destroyKek: 'A key can be destroyed when every replica had time to forget it: keys/kek-rotation.slow.test.ts waits for that.',
};

async function generated(document: object): Promise<{ readonly sdk: Generated; remove(): Promise<void> }> {
  const folder = await mkdtemp(join(tmpdir(), 'keyguard-client-'));
  await writeFile(join(folder, 'openapi.json'), JSON.stringify(document));
  await generate({ input: join(folder, 'openapi.json'), output: { path: join(folder, 'client') }, logs: { level: 'silent' }, plugins: ['@hey-api/client-fetch', '@hey-api/typescript', '@hey-api/sdk'] });
  return { sdk: (await import(/* @vite-ignore */ join(folder, 'client', 'sdk.gen.ts'))) as Generated, remove: () => rm(folder, { recursive: true, force: true }) };
}

describe('a client generated from the document', () => {
  let world: World;
  let document: object;
  let client: Awaited<ReturnType<typeof generated>>;

  beforeAll(async () => {
    world = await makeWorld();
    document = (await world.stage.call('GET', '/api/openapi.json')).json;
    client = await generated(document);
  }, 180_000);
  afterAll(async () => {
    await client?.remove();
    await world?.stop();
  }, 60_000);

  /** By whom the row of an operation is answered with success, and with what. */
  async function driveOf(id: string): Promise<Drive> {
    const own = DRIVES[id];
    if (own !== undefined) return { token: world.tokenOf('administrator')!, ...(await own(world)) };
    const row = ROWS[id]!;
    const who = [...PRINCIPALS].toReversed().find((one) => row.answers[one] < 300)!;
    const token = world.tokenOf(who);
    return { ...(await row.call?.(world, who)), ...(token !== undefined && { token }) };
  }

  it('has a way to call each, and calls each with success', async () => {
    const ids = operationsIn(document).map(({ id }) => id);
    const undriven = ids.filter((id) => !(id in DRIVES) && !(id in ELSEWHERE) && !Object.values(ROWS[id]?.answers ?? {}).some((status) => status < 300));
    expect(undriven, 'operations without a drive: give each a row in matrix/rows.ts that succeeds, or a drive in DRIVES').toEqual([]);
    expect(Object.keys({ ...DRIVES, ...ELSEWHERE }).filter((id) => !ids.includes(id)), 'drives of operations that are not there').toEqual([]);
    const failures: string[] = [];
    for (const { id, isJson } of operationsIn(document)) {
      if (id in ELSEWHERE) continue;
      try {
        const { params, query = '', body, headers, token } = await driveOf(id);
        const { data, error, response } = await client.sdk[id]!({
          baseUrl: world.stage.origin,
          // Of what is no JSON it must be told what to make.
          ...(!isJson && { parseAs: 'text' }),
          ...(params !== undefined && { path: params }),
          ...(query !== '' && { query: Object.fromEntries(new URLSearchParams(query)) }),
          ...(body !== undefined && { body }),
          headers: { ...headers, ...(token !== undefined && { authorization: `Bearer ${token}` }) },
        });
        if (!response.ok) failures.push(`${id}: ${response.status} ${JSON.stringify(error)}`);
        else if (response.status !== 204 && data === undefined) failures.push(`${id}: ${response.status} without data`);
      } catch (thrown) {
        failures.push(`${id}: ${String(thrown)}`);
      }
    }
    expect(failures).toEqual([]);
  }, 300_000);

  it('calls what devices sign, with the fetch of a client of KeyGuard', async () => {
    const { origin } = world.stage;
    const { code } = await newEnrollmentCode(world);
    const guard = new KeyGuardClient({ origin, keyStore: memoryKeyStore() });
    const { deviceId } = await guard.enroll({ code });
    const status = await client.sdk['getDeviceStatus']!({ baseUrl: origin, fetch: guard.fetch });
    expect(status.data).toMatchObject({ device_id: deviceId });
    for (const id of ['getTime', 'getHealth', 'getReadiness']) expect([id, (await client.sdk[id]!({ baseUrl: origin })).response.status]).toEqual([id, 200]);
    await world.make('administrator', `/api/devices/${deviceId}/approve`);
    const chat = await client.sdk['proxyChatCompletions']!({ baseUrl: origin, fetch: guard.fetch, body: { model: 'keyguard-demo', messages: [{ role: 'user', content: 'Hello' }] } });
    // A key was stored by the test before, which is nobody's: the provider itself, or this service, answers that it cannot be used.
    expect(chat.response.headers.get('x-request-id')).toMatch(/^req_/);
  }, 60_000);

  it('sets a service up, and signs in', async () => {
    const stage = await startInProcess();
    try {
      const made = await client.sdk['setUp']!({ baseUrl: stage.origin, body: { code: stage.setupCode, email: 'first@example.com', password: PASSWORD } });
      expect(made.response.status).toBe(201);
      expect(await signIn(stage.call, 'first@example.com')).not.toBe('');
    } finally {
      await stage.stop();
    }
  }, 120_000);
});
