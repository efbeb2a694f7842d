/**
 * What the owner has, and who may know of which part of it. Every text that identifies something of the owner's is a canary: an
 * answer to somebody who may not know it must not hold it.
 */
import { randomBytes } from 'node:crypto';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { PERMISSION_NAMES } from '../../src/roles/permissions.ts';
import { signIn, startInProcess, type Person, type Stage, type Who } from './stage.ts';

interface Canary {
  readonly what: string;
  readonly text: string;
  readonly knownTo: Set<Who>;
}

export interface World {
  readonly stage: Stage;
  readonly people: Readonly<Record<'owner' | 'shared_read' | 'shared_write' | 'other' | 'administrator', Person>>;
  readonly canaries: readonly Canary[];
  tokenOf(who: Who): string | undefined;
  /** Remembers a text that only these may know, and answers with it. */
  keep(what: string, text: string, knownTo?: readonly Who[]): string;
  /** A new text to call something by. */
  name(what: string, knownTo?: readonly Who[]): string;
  /** A new one, which is no secret. */
  roleName(): string;
  /** What was made by a POST. */
  make(who: Who, path: string, body?: object): Promise<Record<string, string>>;
  stop(): Promise<void>;
}

const OWNER: readonly Who[] = ['owner'];
/** What an administrator may know as well: which things there are, never what is in them. */
const ADMINISTERED: readonly Who[] = ['owner', 'administrator'];

export async function makeWorld(): Promise<World> {
  const stage = await startInProcess();
  const { call } = stage;
  const canaries: Canary[] = [];
  const administrator = await firstAdministrator(stage);
  const people = {
    administrator,
    owner: await stage.newPerson('owner'),
    shared_read: await stage.newPerson('reader'),
    shared_write: await stage.newPerson('writer'),
    other: await stage.newPerson('other'),
  };
  const tokens = new Map<Who, string>(Object.entries(people).map(([who, { token }]) => [who as Who, token]));
  const world: World = {
    stage,
    people,
    canaries,
    tokenOf: (who) => tokens.get(who),
    keep(what, text, knownTo = OWNER) {
      canaries.push({ what, text, knownTo: new Set(knownTo) });
      return text;
    },
    name: (what, knownTo) => world.keep(what, `canary-${what}-${randomBytes(8).toString('hex')}`, knownTo),
    roleName: () => `role-${randomBytes(8).toString('hex')}`,
    async make(who, path, body = {}) {
      const answer = await call('POST', path, { token: tokens.get(who)!, body });
      if (answer.status !== 200 && answer.status !== 201) throw new Error(`POST ${path} as ${who}: ${answer.status} ${answer.text}`);
      return answer.json as Record<string, string>;
    },
    stop: () => stage.stop(),
  };
  // A stranger's program, which may do whatever a program may.
  tokens.set('service_account', (await world.make('other', '/api/service-accounts', { name: 'A program', scopes: PERMISSION_NAMES }))['token']!);
  for (const name of ['userId', 'email'] as const) world.keep(`owner's ${name}`, people.owner[name], ['owner', 'administrator', 'shared_read', 'shared_write']);
  const apiKey = await world.make('administrator', '/api/api-keys', { provider: 'openai', name: world.name('api-key-name', ['administrator']), value: world.name('api-key-value', []) });
  world.keep('api key id', apiKey['id']!, ['administrator']);
  await newLink(world, await newSecret(world));
  return world;
}

export async function firstAdministrator({ call, setupCode }: Stage): Promise<Person> {
  const email = 'administrator@example.com';
  const password = 'a long and quiet password';
  const made = await call('POST', '/api/setup', { body: { code: setupCode, email, password } });
  if (made.status !== 201) throw new Error(`setup: ${made.text}`);
  const signedIn = await call('POST', '/api/auth/sign-in/email', { body: { email, password } });
  return { userId: made.json.user_id as string, email, password, token: signedIn.headers.get('set-auth-token')! };
}

/** A device of the owner's, which waits for approval. */
export async function newDevice(world: World): Promise<string> {
  const { code } = await newEnrollmentCode(world);
  const client = new KeyGuardClient({ origin: world.stage.origin, keyStore: memoryKeyStore() });
  const { deviceId, keyId } = await client.enroll({ code, label: world.name('device-label', ADMINISTERED) });
  world.keep('key id', keyId, ADMINISTERED);
  return world.keep('device id', deviceId, ADMINISTERED);
}

/** A secret of the owner's, with an older version, of which nobody else knows. */
export async function newSecret(world: World, knownTo: readonly Who[] = OWNER): Promise<string> {
  const { id } = await world.make('owner', '/api/secrets', {
    name: world.name('secret-name', knownTo), value: world.name('secret-value', knownTo), tags: [world.name('secret-tag', knownTo)],
  });
  await world.make('owner', `/api/secrets/${id}/versions`, { value: world.name('second-value', knownTo), reason: world.name('version-reason', knownTo) });
  // The audit log names it to administrators.
  return world.keep('secret id', id!, [...knownTo, 'administrator']);
}

const SHARED: readonly Who[] = ['owner', 'shared_read', 'shared_write'];

/** Likewise, shared with one who may read it and one who may write it. */
export async function newSharedSecret(world: World): Promise<string> {
  const id = await newSecret(world, SHARED);
  await newShare(world, id, 'shared_read');
  await newShare(world, id, 'shared_write');
  return id;
}

export async function newShare(world: World, secretId: string, who: 'shared_read' | 'shared_write'): Promise<string> {
  const { id } = await world.make('owner', `/api/secrets/${secretId}/shares`, {
    grantee: { type: 'user', id: world.people[who].userId }, permission: who === 'shared_read' ? 'read' : 'write',
  });
  return world.keep('share id', id!, ['owner', who, 'administrator']);
}

export async function newLink(world: World, secretId: string): Promise<string> {
  const { id, token } = await world.make('owner', `/api/secrets/${secretId}/links`, {});
  world.keep('link token', token!);
  return world.keep('link id', id!, ADMINISTERED);
}

export async function newEnrollmentCode(world: World): Promise<{ readonly id: string; readonly code: string }> {
  const { id, code } = await world.make('owner', '/api/enrollment-codes', { label: world.name('code-label', ADMINISTERED) });
  world.keep('enrollment code', code!);
  return { id: world.keep('enrollment code id', id!, ADMINISTERED), code: code! };
}

/** A session of the owner's beside the one that the owner calls with. */
export async function newSession(world: World): Promise<string> {
  // One for each principal, within a minute: more than an address may try.
  await world.stage.sql.query('DELETE FROM keyguard_auth.rate_limits');
  const token = await signIn(world.stage.call, world.people.owner.email);
  const { json } = await world.stage.call('GET', '/api/auth/get-session', { token });
  return world.keep('session id', json.session.id as string, ADMINISTERED);
}

/** A role, which everybody may know of. */
export async function newRole(world: World): Promise<string> {
  return (await world.make('administrator', '/api/roles', { name: world.roleName(), permissions: ['usage:read'] }))['id']!;
}

export async function newProject(world: World): Promise<string> {
  const { id } = await world.make('owner', '/api/projects', { name: world.name('project-name', ADMINISTERED) });
  return world.keep('project id', id!, ADMINISTERED);
}

/** A provider key in a project of the owner's. Its value is known to nobody. */
export async function newApiKey(world: World): Promise<string> {
  const { id } = await world.make('owner', '/api/api-keys', {
    project_id: await newProject(world), provider: 'openai', name: world.name('api-key-name', ADMINISTERED), value: world.name('api-key-value', []),
  });
  return world.keep('api key id', id!, ADMINISTERED);
}

export async function newServiceAccount(world: World): Promise<string> {
  const { id, token } = await world.make('owner', '/api/service-accounts', { name: world.name('service-account-name', ADMINISTERED), scopes: ['projects:read'] });
  world.keep('service account token', token!);
  return world.keep('service account id', id!, ADMINISTERED);
}
