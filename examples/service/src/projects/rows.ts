/** Rows of projects, and what of them is under their MAC. */
import { isIntact, rowMac, tampered, type RowField, type RowMacKey } from '@keyguard/storage-node/postgres';
import { DEFAULT_PROJECT_ID, SYSTEM } from '../api-keys/rows.ts';

export interface Project {
  readonly id: string;
  readonly ownerId: string;
  readonly name: string;
  readonly environment: string;
  /** To which models all its devices are held; `null` for any. */
  readonly allowedModels: readonly string[] | null;
  readonly version: number;
  readonly createdAtMs: number;
  readonly archivedAtMs: number | null;
}

/** What of a project grants something. */
export type ProjectGrant = Pick<Project, 'id' | 'ownerId' | 'environment' | 'archivedAtMs' | 'allowedModels'>;

export interface ProjectGrantRow {
  id: string;
  owner_id: string;
  environment: string;
  archived_at_ms: unknown;
  allowed_models: readonly string[] | null;
  mac_key_id: string | null;
  mac: Uint8Array | null;
}

export interface ProjectRow extends ProjectGrantRow {
  name: string;
  version: number;
  created_at_ms: unknown;
}

const SEAM = 'projects';
const TABLE = 'api_key_projects';
export const GRANT_COLUMNS = 'id, owner_id, environment, archived_at_ms, allowed_models, mac_key_id, mac';
export const COLUMNS = `${GRANT_COLUMNS}, name, version, created_at_ms`;

/** A project without a list has the fields of one that was written before there were lists. */
function fieldsOf({ id, ownerId, environment, archivedAtMs, allowedModels }: ProjectGrant): readonly RowField[] {
  return [id, ownerId, environment, archivedAtMs, ...(allowedModels === null ? [] : [allowedModels])];
}

export function projectMac(rowMacKey: RowMacKey, grant: ProjectGrant): Promise<Uint8Array> {
  return rowMac(rowMacKey, TABLE, fieldsOf(grant));
}

/** @throws UnavailableError for a row that nobody vouches for, because of what its owner and its devices may do */
export async function vouchedGrant(rowMacKey: RowMacKey, row: ProjectGrantRow): Promise<ProjectGrant> {
  const grant: ProjectGrant = {
    id: row.id,
    ownerId: row.owner_id,
    environment: row.environment,
    archivedAtMs: row.archived_at_ms === null ? null : Number(row.archived_at_ms),
    allowedModels: row.allowed_models,
  };
  const isFirst = row.mac === null && row.id === DEFAULT_PROJECT_ID && row.owner_id === SYSTEM && row.archived_at_ms === null && row.allowed_models === null;
  if (!isFirst && (row.mac === null || row.mac_key_id === null || !(await isIntact(rowMacKey, TABLE, fieldsOf(grant), { macKeyId: row.mac_key_id, mac: row.mac })))) {
    throw tampered(SEAM, TABLE);
  }
  return grant;
}

/** @throws UnavailableError as {@link vouchedGrant} does */
export async function vouchedProject(rowMacKey: RowMacKey, row: ProjectRow): Promise<Project> {
  return { ...(await vouchedGrant(rowMacKey, row)), name: row.name, version: Number(row.version), createdAtMs: Number(row.created_at_ms) };
}
