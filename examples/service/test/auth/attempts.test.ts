/** How long guessing locks, what is given back and what is forgotten; and that the right password counts for nobody's lock. */
import { createHash, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createAttempts, type Attempts, type Claim, type Counter } from '../../src/auth/attempts.ts';
import { createCredentials } from '../../src/auth/credentials.ts';
import * as passwords from '../../src/auth/passwords.ts';
import { createTryLimit } from '../../src/auth/try-limit.ts';
import { insertPerson } from '../people-rows.ts';
import { backends } from '../stage.ts';
import { person } from '../roles/stage.ts';
import { openSecretStage, type SecretStage } from '../secrets/stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;

describe.each(backends())('tries on %s', (_title) => {
  let stage: SecretStage;
  let attempts: Attempts;
  beforeAll(async () => {
    stage = await openSecretStage();
    attempts = createAttempts({ ...stage, hash: (text) => createHash('sha256').update(text).digest('base64url') });
  });
  afterAll(() => stage.close());

  const newCounter = (): Counter => ({ account: randomUUID(), of: 'password' });
  const claims = async (counter: Counter, times: number): Promise<Claim[]> => {
    const all: Claim[] = [];
    for (let i = 0; i < times; i += 1) all.push(await attempts.claim(counter));
    return all;
  };

  it('lock for twice as long each time, and for an hour at the most', async () => {
    const counter = newCounter();
    const waits: number[] = [];
    await claims(counter, 4);
    for (let i = 0; i < 9; i += 1) {
      const { isAllowed, hasLocked, lockedUntilMs } = await attempts.claim(counter);
      expect([isAllowed, hasLocked]).toEqual([true, true]);
      waits.push((lockedUntilMs - stage.clock.now) / MINUTE_MS);
      stage.clock.now = lockedUntilMs - 1;
      expect(await attempts.claim(counter)).toEqual({ isAllowed: false, hasLocked: false, lockedUntilMs });
      stage.clock.now = lockedUntilMs;
    }
    expect(waits).toEqual([1, 2, 4, 8, 16, 32, 60, 60, 60]);
  });

  it('are forgotten a day after the last one, all of them', async () => {
    const counter = newCounter();
    await claims(counter, 4);
    stage.clock.now += 24 * HOUR_MS + 1;
    expect((await claims(counter, 4)).map(({ hasLocked }) => hasLocked)).toEqual([false, false, false, false]);
    expect((await attempts.claim(counter)).hasLocked).toBe(true);
  });

  it('that were never judged are given back with the lock that they were, and with no other’s', async () => {
    const counter = newCounter();
    await claims(counter, 4);
    const last = await attempts.claim(counter);
    expect(last.hasLocked).toBe(true);
    await attempts.giveBack(counter, last);
    const [again] = await claims(counter, 1);
    expect(again).toMatchObject({ isAllowed: true, hasLocked: true });
    // One from before the lock: it counts no more, and the lock stays.
    await attempts.giveBack(counter, { isAllowed: true, hasLocked: false, lockedUntilMs: 0 });
    expect((await attempts.claim(counter)).isAllowed).toBe(false);
    stage.clock.now = again!.lockedUntilMs;
    expect((await attempts.claim(counter)).lockedUntilMs).toBe(stage.clock.now + MINUTE_MS);
  });

  it('of a password that is right, however many, lock nobody, and forgive what was wrong before', async () => {
    const userId = randomUUID();
    await insertPerson(stage.sql, stage.keys, { id: userId, email: `${userId}@example.com`, passwordHash: await passwords.hash('a long and quiet password') });
    const { demand } = createCredentials({ ...stage, vouching: stage.keys, limit: createTryLimit({ ...stage, attempts, pseudonym: (text) => text }) });
    const wrong = (): Promise<unknown> => expect(demand(person(userId), 'not the password at all')).rejects.toMatchObject({ code: 'invalid_password' });
    for (let i = 0; i < 2; i += 1) {
      for (let n = 0; n < 4; n += 1) await wrong();
      await demand(person(userId), 'a long and quiet password');
    }
    for (let i = 0; i < 5; i += 1) await wrong();
    await expect(demand(person(userId), 'a long and quiet password')).rejects.toMatchObject({ code: 'rate_limited' });
  });
});
