/**
 * Which chain of records is the present one. A deployment begins with one; after a restore that somebody answered for, another begins
 * under an origin that was never used. Rows bear a MAC: a writer of the database cannot begin a log.
 */
import { randomBytes } from 'node:crypto';
import { isIntact, rowMac, tampered, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { bytesOf, integer } from '../db/values.ts';

const TABLE = 'audit_chains';

/** Names the first chain of a deployment. */
export function auditOrigin(deploymentId: string): string {
  return `keyguard-${deploymentId}`;
}

export interface Chain {
  /** 0 for the first one. */
  readonly number: number;
  readonly origin: string;
}

export interface ChainKey {
  readonly deploymentId: string;
  readonly rowMacKey: RowMacKey;
}

const fieldsOf = ({ number, origin }: Chain, begunAtMs: number): readonly RowField[] => [number, origin, begunAtMs];

/**
 * The chains of this deployment, the present one first, for kg_jobs.
 * @throws UnavailableError for a row without its MAC
 */
export async function listChains(tx: SqlTransaction, { deploymentId, rowMacKey }: ChainKey): Promise<readonly [Chain, ...Chain[]]> {
  const { rows } = await tx.query<{ number: unknown; origin: string; begun_at_ms: unknown; mac_key_id: string; mac: unknown }>(
    'SELECT number, origin, begun_at_ms, mac_key_id, mac FROM keyguard.audit_chains ORDER BY number DESC',
  );
  const begun: Chain[] = [];
  for (const row of rows) {
    const chain = { number: integer(row.number), origin: row.origin };
    const stored = { macKeyId: row.mac_key_id, mac: bytesOf(row.mac) };
    if (!(await isIntact(rowMacKey, TABLE, fieldsOf(chain, integer(row.begun_at_ms)), stored))) throw tampered('audit_log', TABLE);
    begun.push(chain);
  }
  const first: Chain = { number: 0, origin: auditOrigin(deploymentId) };
  const [present = first, ...before] = begun;
  return begun.length === 0 ? [first] : [present, ...before, first];
}

/** The chain after `last`, under an origin that nobody can have used. */
export function nextChain(last: Chain, deploymentId: string): Chain {
  return { number: last.number + 1, origin: `${auditOrigin(deploymentId)}-${randomBytes(6).toString('hex')}` };
}

/** Makes `chain` the present one; whoever is second to begin that number fails. */
export async function beginChain(tx: SqlTransaction, rowMacKey: RowMacKey, chain: Chain, nowMs: number): Promise<void> {
  await tx.query('INSERT INTO keyguard.audit_chains (number, origin, begun_at_ms, mac_key_id, mac) VALUES ($1, $2, $3, $4, $5)', [
    chain.number,
    chain.origin,
    nowMs,
    rowMacKey.keyId,
    await rowMac(rowMacKey, TABLE, fieldsOf(chain, nowMs)),
  ]);
}
