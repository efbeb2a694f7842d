/**
 * `kill -9` in the middle of creations that come with an Idempotency-Key, on PGlite and on PostgreSQL: whoever repeats afterwards what
 * was not answered finds each thing made once, whatever was acknowledged and whatever was lost.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { backends, caller, freePort, startService, type Backend, type CallAnswer, type Deployment, type Running } from '../stage.ts';

const ROUNDS = Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 3);
const WORKERS = 8;
const ADMIN = { KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' };
// The lease of a request that died, and what a busy machine adds.
const FREE_AGAIN_MS = 40_000;

vi.setConfig({ testTimeout: 60_000 + ROUNDS * 120_000, hookTimeout: 60_000 });

interface Creation {
  readonly key: string;
  readonly label: string;
  answer: CallAnswer | null;
}

describe.each(backends())('killed among creations on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let service: Running | undefined;

  beforeAll(async () => {
    backend = await open();
    deployment = await backend.deploy();
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await backend.stop();
  });

  it(`makes each once, ${ROUNDS} times`, async () => {
    const environment = { ...ADMIN, ...deployment.environment, PORT: String(await freePort()), LOG_LEVEL: 'info' };
    service = await startService(deployment.folder, environment);
    const call = caller(() => service!.origin);
    const credentials = { email: ADMIN.KEYGUARD_ADMIN_EMAIL, password: ADMIN.KEYGUARD_ADMIN_PASSWORD };
    const token = (await call('POST', '/api/auth/sign-in/email', { body: credentials })).headers.get('set-auth-token')!;
    const send = ({ key, label }: Creation): Promise<CallAnswer> =>
      call('POST', '/api/enrollment-codes', { token, headers: { 'idempotency-key': key }, body: { label } });
    const outcomes = { kept: 0, carriedOutAnew: 0, lost: 0 };

    for (let round = 1; round <= ROUNDS; round += 1) {
      const creations: Creation[] = [];
      let isKilled = false;
      const failures: unknown[] = [];
      const work = async (): Promise<void> => {
        for (;;) {
          const creation: Creation = { key: randomUUID(), label: `${round} ${creations.length}`, answer: null };
          creations.push(creation);
          creation.answer = await send(creation);
          if (creation.answer.status !== 201) throw new Error(creation.answer.text);
        }
      };
      const workers = Array.from({ length: WORKERS }, () => work().catch((error: unknown) => {
        if (!isKilled) failures.push(error);
      }));
      while (creations.filter(({ answer }) => answer !== null).length < WORKERS && failures.length === 0) await pause(5);
      await pause(20 + Math.floor(Math.random() * 200));
      isKilled = true;
      expect(await service.stop('SIGKILL')).toBe('SIGKILL');
      await Promise.all(workers);
      expect(failures).toEqual([]);

      service = await startService(deployment.folder, environment);
      const unanswered = creations.filter(({ answer }) => answer === null);
      expect(unanswered.length).toBeGreaterThan(0);
      for (const creation of creations) {
        const untilMs = Date.now() + FREE_AGAIN_MS;
        let again = await send(creation);
        while (again.json.code === 'idempotency_in_flight' && Date.now() < untilMs) {
          await pause(500);
          again = await send(creation);
        }
        if (creation.answer !== null) {
          // Acknowledged: the very answer, or the word that it is lost; never another creation.
          if (again.status === 201) expect([again.text, again.headers.get('idempotency-replayed')]).toEqual([creation.answer.text, 'true']);
          else expect(again.json.code).toBe('idempotency_reply_lost');
          outcomes.kept += again.status === 201 ? 1 : 0;
        } else if (again.status === 201) outcomes.carriedOutAnew += 1;
        else {
          expect(again.json.code).toBe('idempotency_reply_lost');
          outcomes.lost += 1;
        }
      }
      const found = new Map<string, number>();
      let cursor = '';
      do {
        const { json } = await call('GET', `/api/enrollment-codes?limit=200${cursor}`, { token });
        for (const { label } of json.data as { label: string }[]) found.set(label, (found.get(label) ?? 0) + 1);
        cursor = json.has_more ? `&cursor=${json.next_cursor}` : '';
      } while (cursor !== '');
      expect(creations.filter(({ label }) => found.get(label) !== 1)).toEqual([]);
    }
    expect(outcomes.kept).toBeGreaterThan(0);
    expect(outcomes.carriedOutAnew + outcomes.lost).toBeGreaterThan(0);
  });
});
