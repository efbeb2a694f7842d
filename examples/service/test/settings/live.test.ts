/** What is in force when the database falls silent, goes back in time, or was changed by somebody else. */
import { randomBytes } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { nodeMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { followSettings, MAX_SILENT_MS, type LiveSettings } from '../../src/settings/live.ts';
import { appendSettings, type SettingsVersion } from '../../src/settings/store.ts';

const rowMacKey = nodeMacKey({ keyId: 'row-mac-1', key: randomBytes(32) });
const COLUMNS = ['version', 'document', 'changed_by', 'changed_at_ms', 'mac_key_id', 'mac'];

/** As much of the table as is asked for. */
function table(): { readonly sql: SqlClient; readonly rows: Record<string, unknown>[]; fault: Error | null } {
  const rows: Record<string, unknown>[] = [];
  const state = { rows, fault: null as Error | null };
  const query = async (text: string, params: readonly unknown[] = []): Promise<{ rows: never[] }> => {
    if (state.fault !== null) throw state.fault;
    if (text.startsWith('INSERT')) {
      rows.push(Object.fromEntries(COLUMNS.map((name, i) => [name, params[i]])));
      return { rows: [{ version: params[0] }] as never[] };
    }
    return { rows: (text.startsWith('SELECT version') ? rows.slice(-1) : []) as never[] };
  };
  const tx = { query } as unknown as SqlTransaction;
  return Object.assign(state, { sql: { query, transaction: (fn: (tx: SqlTransaction) => Promise<unknown>) => fn(tx) } as unknown as SqlClient });
}

const version = (number: number, perMinute: number): SettingsVersion & { changedBy: string; changedAtMs: number } => ({
  version: number,
  overrides: { limits: { requests_per_minute: perMinute } },
  isWhole: true,
  changedBy: 'someone',
  changedAtMs: 1,
});

describe('settings that are followed', () => {
  let database: ReturnType<typeof table>;
  let live: LiveSettings | undefined;
  const failures: unknown[] = [];
  const perMinute = (): number => live!.current().limits.requests_per_minute;
  const follow = async (): Promise<void> => {
    live = await followSettings({
      sql: database.sql,
      rowMacKey,
      defaults: { requestsPerMinute: 600, enrollmentsPerMinute: 20 },
      onFailure: (error) => failures.push(error),
      onChanged: () => {},
    });
  };

  beforeEach(() => {
    vi.useFakeTimers();
    failures.length = 0;
    database = table();
  });
  afterEach(() => {
    live?.stop();
    live = undefined;
    vi.useRealTimers();
  });

  it('are as the environment says until somebody changes them, anywhere', async () => {
    await follow();
    expect(perMinute()).toBe(600);
    await appendSettings(database.sql, rowMacKey, version(1, 7));
    await vi.advanceTimersByTimeAsync(600);
    expect(perMinute()).toBe(7);
    live!.adopt(version(2, 8));
    expect(perMinute()).toBe(8);
  });

  it('hold for five seconds when nothing can be read, then nobody knows, and by themselves again', async () => {
    await appendSettings(database.sql, rowMacKey, version(1, 7));
    await follow();
    database.fault = new Error('gone');
    await vi.advanceTimersByTimeAsync(MAX_SILENT_MS - 600);
    expect(perMinute()).toBe(7);
    await vi.advanceTimersByTimeAsync(1200);
    expect(perMinute).toThrow(expect.objectContaining({ name: 'UnavailableError', seam: 'settings' }));
    expect(() => live!.assertKnown()).toThrow(/could not be read/);
    // Told once, not twice a second.
    expect(failures).toHaveLength(1);
    database.fault = null;
    await vi.advanceTimersByTimeAsync(600);
    expect(perMinute()).toBe(7);
  });

  it('never go back to what held before, whoever deletes a row or restores a database', async () => {
    await appendSettings(database.sql, rowMacKey, version(1, 7));
    await appendSettings(database.sql, rowMacKey, version(2, 8));
    await follow();
    database.rows.pop();
    await vi.advanceTimersByTimeAsync(MAX_SILENT_MS - 600);
    expect(perMinute()).toBe(8);
    expect(failures).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1200);
    expect(perMinute).toThrow(expect.objectContaining({ seam: 'settings' }));
  });

  it('are taken from no row that was written or changed without the key', async () => {
    const forgeries: ((row: Record<string, unknown>) => void)[] = [
      (row) => (row['document'] = '{"limits":{"requests_per_minute":1000000}}'),
      (row) => (row['version'] = 2),
      (row) => (row['changed_by'] = 'another'),
      (row) => (row['changed_at_ms'] = 2),
      (row) => (row['mac'] = randomBytes(32)),
      (row) => (row['mac_key_id'] = 'row-mac-2'),
    ];
    for (const forge of forgeries) {
      database = table();
      await appendSettings(database.sql, rowMacKey, version(1, 7));
      forge(database.rows[0]!);
      await expect(follow()).rejects.toThrow(/does not bear the MAC/);
    }
  });

  it('are not started with when a later version of the program has set a known thing to what it cannot be', async () => {
    await appendSettings(database.sql, rowMacKey, version(1, -1));
    await expect(follow()).rejects.toThrow(/cannot be read/);
  });

  it('hold as far as they are known when a later version of the program has set more', async () => {
    const overrides = { limits: { requests_per_minute: 7, calls_per_century: 1 }, moon: { phase: 'new' } } as SettingsVersion['overrides'];
    await appendSettings(database.sql, rowMacKey, { ...version(1, 7), overrides });
    await follow();
    expect(perMinute()).toBe(7);
    expect(live!.current()).not.toHaveProperty('moon');
  });

  it('cannot be changed by whoever reads them', async () => {
    await follow();
    expect(() => Object.assign(live!.current().limits, { requests_per_minute: 1 })).toThrow(TypeError);
    expect(() => (live!.current().network.control_plane_allowlist as string[]).push('::1')).toThrow(TypeError);
    expect(live!.current()).toBe(live!.current());
  });
});
