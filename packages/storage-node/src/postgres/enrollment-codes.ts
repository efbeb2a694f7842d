/**
 * Enrollment codes, as `kg_app` for a user: only the SHA-256 of a code is ever kept, and it is not read back. What a code
 * grants (to whom, in which project, how often, until when) is under a MAC, which enrollment checks.
 */
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { randomUUID } from 'node:crypto';
import { isActingAdministrator } from './administrators.ts';
import { asRole, bytesOf, guarded, integer, integerOrNull, type Sql } from './client.ts';
import { pageLimit, pageOf, pageStart, type Page, type PageRequest } from './page.ts';
import { isIntact, rowMac, type RowField, type RowMacKey } from './row-mac.ts';

const SEAM = 'enrollment_codes';

/** The columns of a code that are under its MAC, and the MAC. */
export interface CodeGrantRow {
  id: string;
  code_hash: string;
  created_by: string;
  for_user_id: string;
  project_id: string;
  max_uses: number;
  auto_approve: boolean;
  expires_at_ms: unknown;
  mac_key_id: string;
  mac: unknown;
}

function codeFields(row: Omit<CodeGrantRow, 'mac' | 'mac_key_id'>): readonly RowField[] {
  return [row.id, row.code_hash, row.created_by, row.for_user_id, row.project_id, integer(row.max_uses), row.auto_approve,
    integer(row.expires_at_ms)];
}

export function isCodeIntact(key: RowMacKey, row: CodeGrantRow): Promise<boolean> {
  return isIntact(key, 'enrollment_codes', codeFields(row), { macKeyId: row.mac_key_id, mac: bytesOf(row.mac) });
}

/** An enrollment code as it is kept: its hash, and what it grants. */
export interface NewEnrollmentCode {
  /** Base64url SHA-256 of the normalised code. */
  readonly codeHash: string;
  readonly createdBy: string;
  /** Who will own the devices. Only an administrator may name somebody else than the creator. */
  readonly forUserId: string;
  readonly projectId: string;
  readonly label: string | null;
  /** How many devices may enroll with it, from 1. */
  readonly maxUses: number;
  /** `false` makes the devices wait for an administrator. */
  readonly autoApprove: boolean;
  readonly expiresAtMs: number;
}

/** A code as it may be shown: without its hash. */
export interface EnrollmentCode extends Omit<NewEnrollmentCode, 'codeHash'> {
  readonly id: string;
  /** How many devices have enrolled with it. */
  readonly uses: number;
  readonly createdAtMs: number;
  readonly revokedAtMs: number | null;
}

/** Which codes to list, and as whom. */
export interface EnrollmentCodePageRequest extends PageRequest {
  readonly asUserId: string;
}

/**
 * Where being an administrator decides, a row among the administrators that does not bear its MAC is an `UnavailableError`: for
 * every list and revocation by that user, and for a code in somebody else's name.
 */
export interface EnrollmentCodes {
  /**
   * Keeps a new code.
   * @throws UnavailableError also for a code in the name of somebody else by someone who is no administrator
   */
  create(code: NewEnrollmentCode): Promise<EnrollmentCode>;
  /** The codes that this user made or may use, newest first; an administrator sees all. */
  list(request: EnrollmentCodePageRequest): Promise<Page<EnrollmentCode>>;
  /** Whether there was such a code for this user to revoke; a revoked one stays revoked. */
  revoke(id: string, options: { readonly byUserId: string }): Promise<boolean>;
}

/** What authenticates the rows. */
export interface PostgresEnrollmentCodesOptions {
  /** The one with which administrators are granted and devices enroll. */
  readonly rowMacKey: RowMacKey;
  readonly clock?: Clock;
}

interface CodeRow extends Omit<CodeGrantRow, 'code_hash' | 'mac' | 'mac_key_id'> {
  label: string | null;
  uses: unknown;
  created_at_ms: unknown;
  revoked_at_ms: unknown;
}

function enrollmentCode(row: CodeRow): EnrollmentCode {
  return {
    id: row.id,
    createdBy: row.created_by,
    forUserId: row.for_user_id,
    projectId: row.project_id,
    label: row.label,
    maxUses: integer(row.max_uses),
    uses: integer(row.uses),
    autoApprove: row.auto_approve,
    createdAtMs: integer(row.created_at_ms),
    expiresAtMs: integer(row.expires_at_ms),
    revokedAtMs: integerOrNull(row.revoked_at_ms),
  };
}

/** {@link EnrollmentCodes} in PostgreSQL. */
export function postgresEnrollmentCodes(sql: Sql, options: PostgresEnrollmentCodesOptions): EnrollmentCodes {
  const { rowMacKey, clock = systemClock } = options;

  async function create(code: NewEnrollmentCode): Promise<EnrollmentCode> {
    const { codeHash, createdBy, forUserId, projectId, label, maxUses, autoApprove, expiresAtMs } = code;
    if (!Number.isInteger(maxUses) || maxUses < 1 || maxUses > 0x7fffffff) {
      throw new UsageError('invalid_option', 'maxUses must be a positive integer.');
    }
    if (!Number.isSafeInteger(expiresAtMs)) throw new UsageError('invalid_option', 'expiresAtMs must be Unix milliseconds.');
    const createdAtMs = clock.nowMs();
    const id = randomUUID();
    const mac = await rowMac(rowMacKey, 'enrollment_codes', codeFields({
      id,
      code_hash: codeHash,
      created_by: createdBy,
      for_user_id: forUserId,
      project_id: projectId,
      max_uses: maxUses,
      auto_approve: autoApprove,
      expires_at_ms: expiresAtMs,
    }));
    await asRole(
      sql,
      'kg_app',
      async (tx) => {
        if (forUserId !== createdBy && !(await isActingAdministrator(tx, rowMacKey, createdBy, SEAM))) {
          throw new UnavailableError(SEAM, 'Only an administrator makes a code in the name of somebody else.');
        }
        await tx.query(
          `INSERT INTO keyguard.enrollment_codes (id, code_hash, created_by, for_user_id, project_id, label, max_uses, auto_approve,
            created_at_ms, expires_at_ms, mac_key_id, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
          [id, codeHash, createdBy, forUserId, projectId, label, maxUses, autoApprove, createdAtMs, expiresAtMs,
            rowMacKey.keyId, mac],
        );
      },
      { userId: createdBy },
    );
    return { id, createdBy, forUserId, projectId, label, maxUses, uses: 0, autoApprove, createdAtMs, expiresAtMs, revokedAtMs: null };
  }

  async function list(request: EnrollmentCodePageRequest): Promise<Page<EnrollmentCode>> {
    const limit = pageLimit(request);
    const start = pageStart(request);
    const { rows } = await asRole(
      sql,
      'kg_app',
      async (tx) =>
        tx.query<CodeRow>(
          `SELECT id, created_by, for_user_id, project_id, label, max_uses, uses, auto_approve, created_at_ms, expires_at_ms,
            revoked_at_ms FROM keyguard.enrollment_codes
            WHERE ($1::bigint IS NULL OR (created_at_ms, id) < ($1::bigint, $2::text))
              AND ($3::boolean OR created_by = $4 OR for_user_id = $4)
            ORDER BY created_at_ms DESC, id DESC LIMIT $5`,
          [start?.[0] ?? null, start?.[1] ?? null, await isActingAdministrator(tx, rowMacKey, request.asUserId, SEAM),
            request.asUserId, limit + 1],
        ),
      { userId: request.asUserId },
    );
    return pageOf(rows, limit, (row) => [integer(row.created_at_ms), row.id], enrollmentCode);
  }

  async function revoke(id: string, byUserId: string): Promise<boolean> {
    const { rows } = await asRole(
      sql,
      'kg_app',
      async (tx) =>
        tx.query(
          `UPDATE keyguard.enrollment_codes SET revoked_at_ms = coalesce(revoked_at_ms, $2::bigint)
            WHERE id = $1 AND ($3::boolean OR created_by = $4 OR for_user_id = $4) RETURNING id`,
          [id, clock.nowMs(), await isActingAdministrator(tx, rowMacKey, byUserId, SEAM), byUserId],
        ),
      { userId: byUserId },
    );
    return rows.length > 0;
  }

  return {
    create: (code): Promise<EnrollmentCode> => guarded(SEAM, () => create(code)),
    list: (request): Promise<Page<EnrollmentCode>> => guarded(SEAM, () => list(request)),
    revoke: (id, { byUserId }): Promise<boolean> => guarded(SEAM, () => revoke(id, byUserId)),
  };
}
