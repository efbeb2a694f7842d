/** Ten thousand requests of two people over one connection, one after the other's and in between: nobody ever gets a row of the other's. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { listSecrets } from '../../src/secrets/listing.ts';
import type { SecretStore } from '../../src/secrets/store.ts';
import { backends } from '../stage.ts';
import { person } from '../roles/stage.ts';
import { openSecretStage, type SecretStage } from './stage.ts';

vi.setConfig({ testTimeout: 600_000, hookTimeout: 60_000 });

const REQUESTS = 10_000;
const AT_ONCE = 50;
const PEOPLE = [person('ann'), person('bob')];

describe.each(backends())('one connection for two people on %s', () => {
  let stage: SecretStage;
  let store: SecretStore;

  beforeAll(async () => {
    stage = await openSecretStage({ connections: 1 });
    store = stage.store();
  });
  afterAll(() => stage.close());

  it(`mixes up nothing in ${REQUESTS} requests`, async () => {
    const own = new Map<string, string[]>();
    for (const { userId } of PEOPLE) own.set(userId, []);
    for (let n = 0; n < 20; n += 1) {
      for (const one of PEOPLE) {
        const { secret } = await store.create(one, { name: randomUUID(), type: 'generic', value: `of ${one.userId}`, tags: [], projectId: null, expiresAtMs: undefined });
        own.get(one.userId)!.push(secret.id);
      }
    }
    const foreign: string[] = [];
    let [answered, refused, sent] = [0, 0, 0];
    async function request(n: number): Promise<void> {
      const one = PEOPLE[n % 2]!;
      const mine = own.get(one.userId)!;
      const theirs = own.get(PEOPLE[(n + 1) % 2]!.userId)!;
      const id = mine[n % mine.length]!;
      const kind = n % 7;
      if (kind < 2) {
        const { items } = await listSecrets(stage.sql, store.rows, one, {}, { limit: 200 });
        if (items.length < 20) foreign.push(`${one.userId} saw ${items.length}`);
        for (const { secret } of items) if (secret.ownerId !== one.userId) foreign.push(secret.id);
      } else if (kind < 4) {
        const { value } = await store.reveal(one, id, { version: null, allowExpired: false });
        if (value !== `of ${one.userId}`) foreign.push(id);
      } else if (kind < 5) {
        if ((await store.read(one, id)).secret.ownerId !== one.userId) foreign.push(id);
      } else {
        const asked = kind === 5 ? store.read(one, theirs[n % theirs.length]!) : store.reveal(one, theirs[n % theirs.length]!, { version: null, allowExpired: false });
        await asked.then(
          () => foreign.push(`${one.userId} read what is not theirs`),
          (error: { code?: string }) => {
            expect(error.code).toBe('not_found');
            refused += 1;
          },
        );
      }
      answered += 1;
    }
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        while (sent < REQUESTS) await request(sent++);
      }),
    );
    expect([answered, foreign]).toEqual([REQUESTS, []]);
    expect(refused).toBeGreaterThan(REQUESTS / 5);
  });
});
