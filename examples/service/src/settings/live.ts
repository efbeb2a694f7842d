/**
 * The settings that are in force, in memory. What another process changed is known within half a second; what this one changed, at
 * once. When the database has not answered for five seconds nobody knows what is in force, and whatever depends on a setting is
 * refused until somebody does.
 */
import { UnavailableError } from '@keyguard/core/errors';
import type { RowMacKey, SqlClient } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { applied, defaultDocument, type SettingsDefaults, type SettingsDocument } from './schema.ts';
import { newestSettings, type SettingsVersion } from './store.ts';

const SEAM = 'settings';
const POLL_EVERY_MS = 500;
/** For how long what was read last holds, when nothing can be read any more. */
export const MAX_SILENT_MS = 5000;

export interface LiveSettings {
  /**
   * What is in force: at most a second old, and five while the database does not answer. Frozen, and the same object until
   * something changes.
   * @throws UnavailableError seam `settings` where nobody knows
   */
  current(): SettingsDocument;
  /** What holds where nobody has set anything. */
  readonly defaults: SettingsDocument;
  /** Puts into force what this process has just made durable. */
  adopt(version: SettingsVersion): void;
  /** Throws while {@link current} does. */
  assertKnown(): void;
  stop(): void;
}

export interface LiveSettingsOptions {
  /** MUST NOT wait behind other work. */
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly defaults: SettingsDefaults;
  /** Told of a read that failed, once for each outage. */
  readonly onFailure: (error: unknown) => void;
  /** Told of what was put into force, by whomever. */
  readonly onChanged: (version: number) => void;
}

/** Two clocks of which the one that saw more time pass counts: one stands still while the machine sleeps, the other can be set back. */
function elapsedSince(): () => number {
  const [monotonicMs, wallMs] = [performance.now(), Date.now()];
  return () => Math.max(performance.now() - monotonicMs, Date.now() - wallMs);
}

/** Resolves when the settings are known, and follows them from then on. @throws UnavailableError seam `settings` */
export async function followSettings({ sql, rowMacKey, defaults: fromEnvironment, onFailure, onChanged }: LiveSettingsOptions): Promise<LiveSettings> {
  const defaults = freeze(defaultDocument(fromEnvironment));
  const read = (): Promise<SettingsVersion> => asJobs(sql, (tx) => newestSettings(tx, rowMacKey));

  let silentForMs = elapsedSince();
  let version = -1;
  let inForce = defaults;
  let adoptions = 0;
  let hasFailed = false;
  let isStopped = false;
  let timer: NodeJS.Timeout | undefined;

  function put(next: SettingsVersion): void {
    if (next.version <= version) return;
    inForce = freeze(applied(defaults, next.overrides));
    const isFirst = version === -1;
    version = next.version;
    if (!isFirst) onChanged(version);
  }

  async function poll(): Promise<void> {
    // Before the question is put: the answer may lack what is changed while it is under way.
    const sinceAsked = elapsedSince();
    const adoptionsBefore = adoptions;
    const found = await read();
    if (found.version < version && adoptions === adoptionsBefore) {
      throw new UnavailableError(SEAM, `Version ${version} of the settings was in force, and the database has ${found.version} now: rows were deleted, or an old database was restored.`);
    }
    put(found);
    silentForMs = sinceAsked;
  }

  function pollIn(ms: number): void {
    if (isStopped) return;
    timer = setTimeout(() => {
      const beganMs = performance.now();
      const settled = (failed: boolean, error?: unknown): void => {
        if (failed && !hasFailed && !isStopped) onFailure(error);
        hasFailed = failed;
        pollIn(Math.max(0, POLL_EVERY_MS - (performance.now() - beganMs)));
      };
      poll().then(() => settled(false), (error: unknown) => settled(true, error));
    }, ms);
    timer.unref();
  }

  function assertKnown(): void {
    if (silentForMs() > MAX_SILENT_MS) throw new UnavailableError(SEAM, 'For too long the settings could not be read.', { retryAfterMs: 1000 });
  }

  await poll();
  pollIn(POLL_EVERY_MS);

  return {
    defaults,
    current() {
      assertKnown();
      return inForce;
    },
    adopt(next) {
      adoptions += 1;
      put(next);
    },
    assertKnown,
    stop() {
      isStopped = true;
      clearTimeout(timer);
    },
  };
}

function freeze(document: SettingsDocument): SettingsDocument {
  for (const group of Object.values(document)) {
    for (const value of Object.values(group)) if (Array.isArray(value)) Object.freeze(value);
    Object.freeze(group);
  }
  return Object.freeze(document);
}
