/** People who are made without asking anybody, as the service would have written them. */
import { postgresKeyRecords, type Sql, type SqlClient } from '@keyguard/storage-node/postgres';
import { addPersonIn, setPasswordIn, type Vouching } from '../src/auth/vouched-people.ts';
import type { RootKeyConfig } from '../src/config.ts';
import { asAuth } from '../src/db/as-user.ts';
import { openDeploymentKeys } from '../src/keys/hierarchy.ts';

export interface NewPerson {
  readonly id: string;
  readonly name?: string;
  readonly email: string;
  readonly passwordHash?: string;
}

export async function insertPerson(sql: Sql, vouching: Vouching, { id, name = id, email, passwordHash }: NewPerson): Promise<void> {
  await asAuth(sql, async (tx) => {
    if (!(await addPersonIn(tx, vouching, { id, name, email }))) throw new Error(`There is a person of ${email} already.`);
    if (passwordHash !== undefined) await setPasswordIn(tx, vouching, id, passwordHash);
  });
}

/** With the keys of a deployment that has started before. */
export function vouchingOf(sql: SqlClient, rootKey: RootKeyConfig): Promise<Vouching> {
  return openDeploymentKeys(postgresKeyRecords(sql), rootKey);
}
