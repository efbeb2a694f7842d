/** People of before what they sign in by bore a MAC, and who gets one. */
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { adoptPeople } from '../../src/auth/adopted-people.ts';
import { passwordHashOf, personIn, type VouchedPerson } from '../../src/auth/vouched-people.ts';
import { asAuth } from '../../src/db/as-user.ts';
import { openSecretStage, type SecretStage } from '../secrets/stage.ts';
import { backends } from '../stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

describe.each(backends())('people of before, on %s', (_title) => {
  let stage: SecretStage;
  beforeAll(async () => {
    stage = await openSecretStage();
  });
  afterAll(() => stage.close());

  const adopt = (): Promise<number> => adoptPeople({ ...stage, vouching: stage.keys });
  const entries = (): Promise<{ entry: string }[]> =>
    stage.superuser(`SELECT convert_from(entry, 'UTF8') AS entry FROM keyguard.secret_audit_logs WHERE action = 'auth.accounts_adopted'`);
  const read = (userId: string): Promise<VouchedPerson | null> => asAuth(stage.sql, (tx) => personIn(tx, stage.keys, userId));

  async function ofBefore(): Promise<string> {
    const userId = randomUUID();
    await stage.superuser('INSERT INTO keyguard_auth.users (id, name, email, email_verified) VALUES ($1, $1, $2, true)', [userId, `${userId}@example.com`]);
    await stage.superuser(`INSERT INTO keyguard_auth.accounts (id, user_id, account_id, provider_id, password) VALUES ($1, $2, $2, 'credential', $3)`, [randomUUID(), userId, `of ${userId}`]);
    await stage.superuser(`INSERT INTO keyguard_auth.accounts (id, user_id, account_id, provider_id) VALUES ($1, $2, $3, 'oidc')`, [randomUUID(), userId, `https://issuer.example#é"${userId}`]);
    return userId;
  }

  it('get their MACs once, whoever starts at the same time, and whoever loses one afterwards gets none', async () => {
    expect([await adopt(), await entries()]).toEqual([0, []]);
    const people = [await ofBefore(), await ofBefore(), await ofBefore()];
    const disabled = people[2]!;
    await stage.superuser(`INSERT INTO keyguard.disabled_people (user_id, disabled_by, disabled_at_ms) VALUES ($1, 'root', 1)`, [disabled]);
    await expect(read(people[0]!)).rejects.toMatchObject({ seam: 'people' });
    expect((await Promise.all([adopt(), adopt()])).toSorted()).toEqual([0, 3]);
    expect(await read(disabled)).toBeNull();
    await stage.superuser('DELETE FROM keyguard.disabled_people WHERE user_id = $1', [disabled]);
    for (const id of people) expect(passwordHashOf((await read(id))!)).toBe(`of ${id}`);
    const written = await entries();
    expect(written.map(({ entry }) => JSON.parse(entry))).toEqual([expect.objectContaining({ actor: 'system', outcome: 'success', people: 3 })]);

    await stage.superuser('UPDATE keyguard_auth.users SET mac = NULL, mac_key_id = NULL WHERE id = $1', [people[0]]);
    // The columns beside an entry are copies, and hide nothing.
    await stage.superuser(`UPDATE keyguard.secret_audit_logs SET action = 'nothing' WHERE action = 'auth.accounts_adopted'`);
    const late = await ofBefore();
    expect(await adopt()).toBe(0);
    for (const id of [people[0]!, late]) await expect(read(id)).rejects.toMatchObject({ seam: 'people' });
    expect(passwordHashOf((await read(people[1]!))!)).toBe(`of ${people[1]}`);
  });
});
