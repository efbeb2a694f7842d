/**
 * What people sign in by, under one MAC for each person: address, password, links to a provider, second factor. All that decides by one
 * of these reads it here, and all that changes one writes it here, so that whoever can write to the database and holds no key makes none
 * of them count, and takes none away unnoticed. A whole earlier state of a person can still be put back.
 *
 * @see docs/decisions/0037-what-people-sign-in-by.md
 */
import { randomUUID } from 'node:crypto';
import { UnavailableError } from '@keyguard/core/errors';
import { isIntact, rowMac, tampered, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';

const TABLE = 'users';
const SEAM = 'people';
const CREDENTIAL = 'credential';

type Account = readonly [providerId: string, accountId: string, passwordHash: string | null];

/** A person as the MAC says. */
export interface VouchedPerson {
  readonly id: string;
  readonly email: string;
  readonly isVerified: boolean;
  /** The second factor that counts. */
  readonly factorId: string | null;
  readonly accounts: readonly Account[];
}

export interface Vouching {
  readonly rowMacKey: RowMacKey;
  /** Told of each person who was met changed. MUST NOT throw. */
  readonly onTamperedPerson?: (userId: string) => void;
}

interface Stored extends VouchedPerson {
  readonly macKeyId: string | null;
  /** Hexadecimal. */
  readonly mac: string | null;
  readonly isDisabled: boolean;
}

/** A column `person` of a statement in which keyguard_auth.users is called `u`, for {@link vouched}: all of it as it was at one moment. */
export const PERSON = `json_build_object('id', u.id, 'email', u.email, 'isVerified', u.email_verified, 'macKeyId', u.mac_key_id, 'mac', encode(u.mac, 'hex'),
  'isDisabled', EXISTS (SELECT FROM keyguard.disabled_people d WHERE d.user_id = u.id),
  'factorId', (SELECT f.id FROM keyguard_auth.second_factors f WHERE f.user_id = u.id AND f.activated_at_ms IS NOT NULL),
  'accounts', (SELECT coalesce(json_agg(json_build_array(a.provider_id, a.account_id, a.password) ORDER BY a.provider_id COLLATE "C", a.account_id COLLATE "C"), '[]'::json)
    FROM keyguard_auth.accounts a WHERE a.user_id = u.id))::text AS person`;

function fieldsOf({ id, email, isVerified, factorId, accounts }: VouchedPerson): readonly RowField[] {
  return [id, email, isVerified, factorId, accounts.length, ...accounts.flat()];
}

/** The person in a column {@link PERSON}. @throws UnavailableError where it is not as it was written */
export async function vouched({ rowMacKey, onTamperedPerson }: Vouching, column: string): Promise<VouchedPerson> {
  const { mac, macKeyId, isDisabled: _, ...person } = JSON.parse(column) as Stored;
  if (mac !== null && macKeyId !== null && (await isIntact(rowMacKey, TABLE, fieldsOf(person), { macKeyId, mac: Buffer.from(mac, 'hex') }))) return person;
  onTamperedPerson?.(person.id);
  throw tampered(SEAM, TABLE);
}

/** Whom `where` names, a condition on `u` with one parameter; `null` for nobody, and for who is disabled: of these nothing is seen by which they sign in. */
async function findIn(tx: SqlTransaction, vouching: Vouching, where: string, value: string): Promise<VouchedPerson | null> {
  const { rows } = await tx.query<{ person: string }>(`SELECT ${PERSON} FROM keyguard_auth.users u WHERE ${where}`, [value]);
  return rows[0] === undefined || (JSON.parse(rows[0].person) as Stored).isDisabled ? null : vouched(vouching, rows[0].person);
}

/** The column {@link PERSON} of whom `where` names, disabled or not. */
async function seeIn(tx: SqlTransaction, where: string, params: readonly string[] = []): Promise<readonly string[]> {
  await tx.query(`SELECT set_config('keyguard.vouching', 'on', true)`);
  const { rows } = await tx.query<{ person: string }>(`SELECT ${PERSON} FROM keyguard_auth.users u WHERE ${where}`, params);
  await tx.query(`SELECT set_config('keyguard.vouching', 'off', true)`);
  return rows.map(({ person }) => person);
}

/** `null` also for who is disabled, here as below. @throws UnavailableError where they are not as they were written */
export function personIn(tx: SqlTransaction, vouching: Vouching, userId: string): Promise<VouchedPerson | null> {
  return findIn(tx, vouching, 'u.id = $1', userId);
}

/** @param email lower-case @throws UnavailableError where they are not as they were written */
export function personOfAddressIn(tx: SqlTransaction, vouching: Vouching, email: string): Promise<VouchedPerson | null> {
  return findIn(tx, vouching, 'u.email = $1', email);
}

// A statement of its own: what the next one sees is what whoever was waited for has left.
async function holdIn(tx: SqlTransaction, userId: string, lock: 'SHARE' | 'NO KEY UPDATE'): Promise<void> {
  await tx.query(`SELECT 1 FROM keyguard_auth.users WHERE id = $1 FOR ${lock}`, [userId]);
}

/** As {@link personIn}, and waits for whoever changes them at this moment; they change no more until the transaction ends. */
export async function heldPersonIn(tx: SqlTransaction, vouching: Vouching, userId: string, lock: 'SHARE' | 'NO KEY UPDATE' = 'SHARE'): Promise<VouchedPerson | null> {
  await holdIn(tx, userId, lock);
  return personIn(tx, vouching, userId);
}

async function macColumns({ rowMacKey }: Vouching, person: VouchedPerson): Promise<readonly [keyId: string, mac: Uint8Array]> {
  const accounts = person.accounts.toSorted((a, b) => Buffer.compare(Buffer.from(a[0]), Buffer.from(b[0])) || Buffer.compare(Buffer.from(a[1]), Buffer.from(b[1])));
  return [rowMacKey.keyId, await rowMac(rowMacKey, TABLE, fieldsOf({ ...person, accounts }))];
}

async function vouchIn(tx: SqlTransaction, vouching: Vouching, person: VouchedPerson): Promise<void> {
  await tx.query('UPDATE keyguard_auth.users SET mac_key_id = $2, mac = $3 WHERE id = $1', [person.id, ...(await macColumns(vouching, person))]);
}

/**
 * Changes a person, disabled or not, by `change`, which answers with what it made of them. The MAC is over that answer, not over what the database says
 * afterwards: what somebody else writes beside it does not come under it.
 * @throws UnavailableError where they are not as they were written
 */
export async function changePersonIn(tx: SqlTransaction, vouching: Vouching, userId: string, change: (before: VouchedPerson) => Promise<VouchedPerson>): Promise<VouchedPerson> {
  await holdIn(tx, userId, 'NO KEY UPDATE');
  const [column] = await seeIn(tx, 'u.id = $1', [userId]);
  if (column === undefined) throw new UnavailableError(SEAM, 'There is no such person any more.');
  const before = await vouched(vouching, column);
  await vouchIn(tx, vouching, await change(before));
  return before;
}

/** `false` where there is somebody of this address. @param email lower-case, and proven to be theirs */
export async function addPersonIn(tx: SqlTransaction, vouching: Vouching, { id, name, email }: { readonly id: string; readonly name: string; readonly email: string }): Promise<boolean> {
  const { rows } = await tx.query(
    `INSERT INTO keyguard_auth.users (id, name, email, email_verified, mac_key_id, mac) VALUES ($1, $2, $3, true, $4, $5)
      ON CONFLICT (email) DO NOTHING RETURNING id`,
    [id, name, email, ...(await macColumns(vouching, { id, email, isVerified: true, factorId: null, accounts: [] }))],
  );
  return rows.length === 1;
}

/** The hash of the password that counts, or `null` for none. */
export function passwordHashOf({ id, accounts }: VouchedPerson): string | null {
  return accounts.find(([providerId, accountId]) => providerId === CREDENTIAL && accountId === id)?.[2] ?? null;
}

/** Whether an identity of a provider signs in as this person. */
export function isLinkedTo({ accounts }: VouchedPerson, providerId: string, accountId: string): boolean {
  return accounts.some((account) => account[0] === providerId && account[1] === accountId);
}

function withoutPassword({ accounts }: VouchedPerson): readonly Account[] {
  return accounts.filter(([providerId]) => providerId !== CREDENTIAL);
}

/** Writes the hash of a password, in the place of the one before. @throws UnavailableError as {@link changePersonIn} */
export async function setPasswordIn(tx: SqlTransaction, vouching: Vouching, userId: string, hash: string): Promise<void> {
  await changePersonIn(tx, vouching, userId, async (before) => {
    await tx.query(
      `INSERT INTO keyguard_auth.accounts (id, user_id, account_id, provider_id, password) VALUES ($1, $2, $2, $3, $4)
        ON CONFLICT (provider_id, account_id) DO UPDATE SET password = excluded.password, updated_at = CURRENT_TIMESTAMP`,
      [randomUUID(), userId, CREDENTIAL, hash],
    );
    return { ...before, accounts: [...withoutPassword(before), [CREDENTIAL, userId, hash]] };
  });
}

/**
 * Lets an identity of a provider sign in as this person. A password that there is goes: whoever set it may be somebody else than whom the
 * provider knows. Whether there was one.
 * @throws UnavailableError as {@link changePersonIn}
 */
export async function linkProviderIn(tx: SqlTransaction, vouching: Vouching, userId: string, providerId: string, accountId: string): Promise<boolean> {
  const before = await changePersonIn(tx, vouching, userId, async (person) => {
    await tx.query('DELETE FROM keyguard_auth.accounts WHERE user_id = $1 AND provider_id = $2', [userId, CREDENTIAL]);
    await tx.query('INSERT INTO keyguard_auth.accounts (id, user_id, account_id, provider_id) VALUES ($1, $2, $3, $4)', [randomUUID(), userId, accountId, providerId]);
    return { ...person, accounts: [...withoutPassword(person), [providerId, accountId, null]] };
  });
  return passwordHashOf(before) !== null;
}

/** Vouches for everybody of before there were MACs, as they are in the database; how many. Asked for once, by `adopted-people.ts`. */
export async function vouchForAllIn(tx: SqlTransaction, vouching: Vouching): Promise<number> {
  await tx.query('SELECT 1 FROM keyguard_auth.users WHERE mac IS NULL FOR NO KEY UPDATE');
  const people = await seeIn(tx, 'u.mac IS NULL');
  for (const person of people) await vouchIn(tx, vouching, JSON.parse(person) as Stored);
  return people.length;
}
