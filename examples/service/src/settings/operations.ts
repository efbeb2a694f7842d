/**
 * The settings as administrators read and change them. A change is checked as a whole, bears a version, and is written to the audit
 * log with what was in force before and what is now, all in one transaction.
 */
import type { Clock, JsonValue } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { ipMatcher } from '@keyguard/server-verifier/ip';
import type { RowMacKey, SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import * as z from 'zod';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { pageOf, pageQuery, time, timeJson } from '../http/pagination.ts';
import { HttpProblem } from '../http/problems.ts';
import type { LiveSettings } from './live.ts';
import { applied, changesBetween, patched, SETTING_PATHS, settingsDocument, settingsPatch, type SettingsDocument, type SettingsPatch } from './schema.ts';
import { appendSettings, listSettings, newestSettings, type SettingsVersion } from './store.ts';

const TAG = 'Settings';

export interface SettingsOperationsOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly audit: AuditLog;
  readonly live: LiveSettings;
  readonly clock?: Clock;
}

const settingsState = z
  .object({
    version: z.int().describe('Grows by one with each change; 0 while nobody has changed anything. The ETag is made of it.'),
    changed_at: time.nullable(),
    changed_by: z.string().nullable(),
    settings: settingsDocument.describe('What is in force.'),
    overridden: z.array(z.enum(SETTING_PATHS)).describe('What has been set; the rest is as the environment of the service says.'),
  })
  .meta({ id: 'SettingsState' });

const settingsVersion = z
  .object({
    version: z.int(),
    changed_at: time,
    changed_by: z.string(),
    changes: z
      .array(z.object({ setting: z.enum(SETTING_PATHS), from: z.unknown().optional(), to: z.unknown().optional() }))
      .describe('From what to what. Without `from` or `to`: what the environment says.'),
  })
  .meta({ id: 'SettingsVersion' });

const patchQuery = z.strictObject({
  force: z.enum(['true', 'false']).optional().describe("Makes a change that shuts the caller's own address out."),
});
const historyQuery = pageQuery.extend({ cursor: z.string().regex(/^[1-9][0-9]{0,14}$/, 'is not one that was handed out').optional() });

/** `/api/settings`. */
export function settingsOperations({ sql, rowMacKey, audit, live, clock = systemClock }: SettingsOperationsOptions): readonly Operation[] {
  const { defaults } = live;

  const stateJson = ({ version, overrides, changedAtMs, changedBy }: SettingsVersion): object => ({
    version,
    changed_at: timeJson(changedAtMs),
    changed_by: changedBy,
    settings: applied(defaults, overrides),
    overridden: changesBetween({}, overrides).map(({ setting }) => setting),
  });

  const get = operation(
    {
      id: 'getSettings', action: 'settings.read', method: 'get', path: '/api/settings', tag: TAG, access: 'administrator',
      summary: 'Show the security policies that are in force',
      answers: { 200: { description: 'What is in force, and what of it was set', json: settingsState } },
    },
    async ({ principal: { userId } }) => {
      const found = await asUser(sql, userId, (tx) => newestSettings(tx, rowMacKey));
      return { json: stateJson(found), etag: String(found.version) };
    },
  );

  interface Wanted {
    readonly patch: SettingsPatch;
    /** `null` for any. */
    readonly versions: readonly string[] | null;
    readonly ip: string | null;
    readonly force: boolean;
    readonly principal: Principal;
  }

  /** `null` where somebody else was faster. */
  async function change(tx: SqlTransaction, { patch, versions, ip, force, principal: { userId, actor } }: Wanted): Promise<SettingsVersion | null> {
    const before = await newestSettings(tx, rowMacKey);
    if (versions !== null && !versions.includes(String(before.version))) throw lostUpdate();
    if (!before.isWhole) throw new HttpProblem('illegal_transition', 'A newer version of KeyGuard has set what this one does not know: change the settings there.');
    const overrides = patched(before.overrides, patch);
    const changes = changesBetween(before.overrides, overrides);
    if (changes.length === 0) return before;
    const [from, to] = [applied(defaults, before.overrides), applied(defaults, overrides)];
    const isShutOut = !ipMatcher(to.network.control_plane_allowlist)(ip);
    if (isShutOut && !force) {
      throw new HttpProblem('would_lock_out', `Your own address, ${ip ?? 'which is not known'}, would not be let in any more. Add it, or send ?force=true.`);
    }
    const next = { version: before.version + 1, overrides, isWhole: true, changedBy: userId, changedAtMs: clock.nowMs() };
    if ((await appendSettings(tx, rowMacKey, next)) === null) return null;
    await audit.recordIn(tx, {
      action: 'settings.change',
      outcome: 'success',
      actor,
      resource: 'settings',
      version: next.version,
      changes: changes.map(({ setting }) => ({ setting, from: valueAt(from, setting), to: valueAt(to, setting) })),
      ...(isShutOut && { forced: true }),
    });
    return next;
  }

  const patch = operation(
    {
      id: 'changeSettings', action: 'settings.change', method: 'patch', path: '/api/settings', tag: TAG, access: 'administrator',
      // Else whoever lacks the factor would take the demand away first.
      stepUp: 'policy',
      summary: 'Change security policies',
      description: 'Sets what is named and leaves the rest. In force in every process within a second. Demands If-Match, with the ETag of what the change is based on.',
      query: patchQuery,
      body: settingsPatch,
      answers: { 200: { description: 'What is in force now', json: settingsState } },
      problems: ['precondition_required', 'precondition_failed', 'would_lock_out', 'illegal_transition'],
    },
    async ({ principal, body, query: { force }, ifMatch, request }) => {
      const wanted: Wanted = { patch: body, versions: ifMatch, ip: request.ip ?? null, force: force === 'true', principal };
      let made: SettingsVersion | null = null;
      while (made === null) {
        made = await asUser(sql, principal.userId, (tx) => change(tx, wanted));
        if (made === null && ifMatch !== null) throw lostUpdate();
      }
      live.adopt(made);
      return { json: stateJson(made), etag: String(made.version) };
    },
  );

  const history = operation(
    {
      id: 'listSettingsVersions', action: 'settings.read', method: 'get', path: '/api/settings/history', tag: TAG, access: 'administrator',
      summary: 'List all changes of the settings, newest first',
      query: historyQuery,
      answers: { 200: { description: 'A page', json: pageOf(settingsVersion) } },
    },
    async ({ principal: { userId }, query: { limit = 50, cursor } }) => {
      const found = await asUser(sql, userId, (tx) => listSettings(tx, rowMacKey, cursor === undefined ? null : Number(cursor), limit + 1));
      const shown = found.slice(0, limit);
      const hasMore = found.length > limit;
      const data = shown.map(({ version, overrides, changedBy, changedAtMs }, i) => ({
        version,
        changed_at: timeJson(changedAtMs),
        changed_by: changedBy,
        changes: changesBetween(found[i + 1]?.overrides ?? {}, overrides),
      }));
      return { json: { data, has_more: hasMore, next_cursor: hasMore ? String(shown.at(-1)!.version) : null } };
    },
  );

  return [get, patch, history];
}

function lostUpdate(): HttpProblem {
  return new HttpProblem('precondition_failed', 'Somebody has changed the settings since: read them again, and see whether the change still makes sense.');
}

function valueAt(document: SettingsDocument, path: string): JsonValue {
  const [group, key] = path.split('.') as [keyof SettingsDocument, string];
  return (document[group] as Readonly<Record<string, JsonValue>>)[key]!;
}
