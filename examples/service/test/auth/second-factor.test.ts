/** A second factor beside its HTTP: what two do at the same moment. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { createSecondFactors } from '../../src/auth/second-factor.ts';
import type { Standings } from '../../src/auth/standing.ts';
import { codeOfStep, stepAt } from '../../src/auth/totp.ts';
import type { TryLimit } from '../../src/auth/try-limit.ts';
import { insertPerson } from '../people-rows.ts';
import { backends } from '../stage.ts';
import { fromBase32 } from '../people/stage.ts';
import { person } from '../roles/stage.ts';
import { openSecretStage, type SecretStage } from '../secrets/stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('a second factor on %s', (_title) => {
  let stage: SecretStage;
  beforeAll(async () => {
    stage = await openSecretStage();
  });
  afterAll(() => stage.close());

  it('is made to count by one of two who come with its first code at once, whose backup codes are the ones that there are', async () => {
    const userId = randomUUID();
    await insertPerson(stage.sql, stage.keys, { id: userId, email: `${userId}@example.com` });
    await stage.superuser(`INSERT INTO keyguard_auth.sessions (id, user_id, token, expires_at) VALUES ($1, $2, $1, CURRENT_TIMESTAMP + interval '1 day')`, [person(userId).sessionId, userId]);
    const waiting: (() => void)[] = [];
    // Both have been counted before either is judged.
    const limit: TryLimit = {
      async claim() {
        await new Promise<void>((resolve) => {
          waiting.push(resolve);
          if (waiting.length === 2) for (const go of waiting) go();
        });
        return { giveBack: async () => {} };
      },
      succeeded: async () => {},
    };
    const factors = createSecondFactors({ ...stage, limit, standings: { proveIn: async () => stage.clock.now } as unknown as Standings });
    const { secret } = await factors.begin(person(userId));
    const code = codeOfStep(fromBase32(secret), stepAt(stage.clock.now));
    const both = await Promise.allSettled([factors.activate(person(userId), code), factors.activate(person(userId), code)]);
    expect(both.map(({ status }) => status).toSorted()).toEqual(['fulfilled', 'rejected']);
    expect(both.find((each) => each.status === 'rejected')!.reason).toMatchObject({ code: 'second_factor_invalid' });
    expect(await factors.stateOf(userId)).toMatchObject({ isSetUp: true, backupCodesLeft: 10 });
    expect(await stage.superuser(`SELECT action FROM keyguard.secret_audit_logs WHERE resource = $1 ORDER BY seq`, [`user:${userId}`])).toEqual([{ action: 'second_factor.begin' }, { action: 'second_factor.activate' }]);
  });
});
