/** The service in this process, with a clock and a sign-in policy that a test sets, and people who are made without asking anybody. */
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { hashPassword } from 'better-auth/crypto';
import { pino } from 'pino';
import { expect } from 'vitest';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../../src/audit/log.ts';
import { createAttempts } from '../../src/auth/attempts.ts';
import { createSessions } from '../../src/auth/sessions.ts';
import { DEFAULT_SIGN_IN_POLICY, type SignInPolicy } from '../../src/auth/policy.ts';
import type { Vouching } from '../../src/auth/vouched-people.ts';
import { codeOfStep, stepAt } from '../../src/auth/totp.ts';
import { readConfig } from '../../src/config.ts';
import { asAuth } from '../../src/db/as-user.ts';
import { startService, type Service } from '../../src/service.ts';
import { insertPerson, vouchingOf } from '../people-rows.ts';
import { caller, freePort, type Backend, type CallAnswer, type Deployment } from '../stage.ts';

export const PASSWORD = 'a long and quiet password';
export const ADMIN = 'admin@example.com';

export interface SignedIn {
  readonly userId: string;
  readonly email: string;
  readonly token: string;
}

export interface Stage {
  readonly call: ReturnType<typeof caller>;
  readonly deployment: Deployment;
  origin(): string;
  sql(): SqlClient;
  /** What writes people as the service does. */
  vouching(): Promise<Vouching>;
  /** Real time, and what was added to it. */
  readonly time: { aheadMs: number; nowMs(): number };
  policy: SignInPolicy;
  admin: SignedIn;
  restart(): Promise<void>;
  /** Forgets who called how often. */
  forgetAddresses(): Promise<void>;
  /** What the service does once a minute. */
  purge(): Promise<void>;
  newPerson(name: string): Promise<SignedIn>;
  signIn(email: string, password?: string, headers?: Record<string, string>): Promise<CallAnswer>;
  auditEntries(): Promise<{ action: string; outcome: string; actor: string; code?: string; [name: string]: unknown }[]>;
  stop(): Promise<void>;
}

export async function startStage(backend: Backend, environment: Record<string, string> = {}): Promise<Stage> {
  const deployment = await backend.deploy();
  const port = await freePort();
  const passwordHash = await hashPassword(PASSWORD);
  let sql: SqlClient | undefined;
  let service: Service;
  let origin = '';
  const time = { aheadMs: 0, nowMs: (): number => Date.now() + time.aheadMs };
  const call = caller(() => origin);

  const config = readConfig(
    {
      PORT: String(port), KEYGUARD_DATA_DIR: join(deployment.folder, 'data'), KEYGUARD_ADMIN_EMAIL: ADMIN, KEYGUARD_ADMIN_PASSWORD: PASSWORD,
      ...deployment.environment, ...environment,
    },
    deployment.folder,
  );

  const start = async (): Promise<void> => {
    const said: string[] = [];
    service = await startService({
      config,
      log: pino({ level: 'silent' }),
      say: (text) => said.push(text),
      overrides: {
        clock: time,
        signInPolicy: () => stage.policy,
        database: (opened) => {
          sql = opened.sql;
          return opened;
        },
      },
    });
    origin = /KeyGuard is at (\S+),/.exec(said.join('\n'))![1]!;
  };

  const stage: Stage = {
    call,
    deployment,
    time,
    policy: DEFAULT_SIGN_IN_POLICY,
    admin: { userId: '', email: ADMIN, token: '' },
    origin: () => origin,
    sql: () => sql!,
    vouching: () => vouchingOf(sql!, config.rootKey),
    async restart() {
      await service.stop();
      await start();
    },
    async forgetAddresses() {
      await asAuth(sql!, (tx) => tx.query('DELETE FROM keyguard_auth.rate_limits'));
    },
    async purge() {
      const quiet = { record: async () => {}, recordIn: async () => {}, recordAsIs: async () => {} } as unknown as AuditLog;
      await createAttempts({ sql: sql!, hash: (text) => text, clock: time }).purge();
      await createSessions({ sql: sql!, audit: quiet, policy: () => stage.policy }).purge();
    },
    async newPerson(name) {
      const userId = randomUUID();
      const email = `${name}@example.com`;
      await insertPerson(sql!, await stage.vouching(), { id: userId, name, email, passwordHash });
      return { userId, email, token: bearerOf(await stage.signIn(email)) };
    },
    async signIn(email, password = PASSWORD, headers = {}) {
      await stage.forgetAddresses();
      return call('POST', '/api/auth/sign-in/email', { body: { email, password }, headers });
    },
    async auditEntries() {
      const entries = [];
      let cursor = '';
      do {
        const { json } = await call('GET', `/api/audit?limit=200${cursor}`, { token: stage.admin.token });
        entries.push(...json.data);
        cursor = json.has_more ? `&cursor=${json.next_cursor}` : '';
      } while (cursor !== '');
      return entries;
    },
    stop: () => service.stop(),
  };
  await start();
  const signedIn = await stage.signIn(ADMIN);
  stage.admin = { userId: signedIn.json.user.id, email: ADMIN, token: bearerOf(signedIn) };
  return stage;
}

export function bearerOf(answer: CallAnswer): string {
  expect([answer.status, answer.text]).toEqual([200, expect.any(String)]);
  return answer.headers.get('set-auth-token')!;
}

const BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';

/** As an authenticator reads what was typed into it. */
export function fromBase32(text: string): Uint8Array {
  const bits = [...text].map((character) => BASE32.indexOf(character).toString(2).padStart(5, '0')).join('');
  return Uint8Array.from(bits.match(/.{8}/g)!, (byte) => Number.parseInt(byte, 2));
}

export interface Authenticator {
  readonly secret: string;
  readonly backupCodes: readonly string[];
  /** Of the session from then on: the one that set it up is dead. */
  readonly token: string;
  /** A code that was not used yet: the clock goes on for it. */
  next(): string;
  /** The code of now. */
  code(): string;
}

/** Sets a second factor up for who is signed in. */
export async function setUpFactor(stage: Stage, token: string): Promise<Authenticator> {
  const begun = await stage.call('POST', '/api/auth/second-factor', { token, body: { password: PASSWORD } });
  expect([begun.status, begun.text]).toEqual([201, expect.any(String)]);
  const secret = fromBase32(begun.json.secret);
  const code = (): string => codeOfStep(secret, stepAt(stage.time.nowMs()));
  const activated = await stage.call('POST', '/api/auth/second-factor/activate', { token, body: { code: code() } });
  expect([activated.status, activated.text]).toEqual([200, expect.any(String)]);
  return {
    secret: begun.json.secret,
    backupCodes: activated.json.backup_codes,
    token: bearerOf(activated),
    code,
    next() {
      stage.time.aheadMs += 30_000;
      return code();
    },
  };
}
