/**
 * Who may change the root key: nobody while a process serves. On the embedded database the lock of the data folder says so; on
 * PostgreSQL each process that serves holds a lock in a session of its own, shared with the others.
 */
import pg from 'pg';

const LOCK = `hashtextextended('keyguard.root_key', 0)`;
const CONNECT_TIMEOUT_MS = 5000;
const AGAIN_MS = 1000;

/** Somebody has what must be had alone. The message says what to do. */
export class RootInUseError extends Error {
  override readonly name = 'RootInUseError';
}

async function session(url: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: CONNECT_TIMEOUT_MS, query_timeout: CONNECT_TIMEOUT_MS, keepAlive: true, application_name: 'keyguard-root-lock' });
  // Said again by whatever is asked next; without a listener it would end the process.
  client.on('error', () => {});
  await client.connect();
  return client;
}

async function take(client: pg.Client, how: 'pg_try_advisory_lock' | 'pg_try_advisory_lock_shared'): Promise<boolean> {
  const { rows } = await client.query(`SELECT ${how}(${LOCK}) AS taken`);
  return rows[0].taken === true;
}

export interface RootLock {
  release(): Promise<void>;
}

/**
 * Holds the root key as it is, for as long as this process serves. A session that breaks is made anew; `onLost` hears once of each
 * time that it was.
 * @throws RootInUseError while it is being changed
 */
export async function holdRoot(url: string, onLost: () => void): Promise<RootLock> {
  let client: pg.Client | null = null;
  let timer: NodeJS.Timeout | undefined;
  let isReleased = false;

  async function hold(): Promise<void> {
    const fresh = await session(url);
    if (!(await take(fresh, 'pg_try_advisory_lock_shared'))) {
      await fresh.end();
      throw new RootInUseError('The root key of this database is being changed at this moment: start again when that is done.');
    }
    client = fresh;
    fresh.once('end', () => {
      if (isReleased) return;
      onLost();
      again();
    });
  }
  function again(): void {
    if (isReleased) return;
    timer = setTimeout(() => {
      hold().catch(again);
    }, AGAIN_MS);
    timer.unref();
  }

  await hold();
  return {
    async release() {
      isReleased = true;
      clearTimeout(timer);
      await client?.end().catch(() => {});
    },
  };
}

/**
 * `work` while nobody serves.
 * @throws RootInUseError while somebody does
 */
export async function withRootAlone<T>(url: string, work: () => Promise<T>): Promise<T> {
  const client = await session(url);
  try {
    if (!(await take(client, 'pg_try_advisory_lock'))) {
      throw new RootInUseError('KeyGuard is running on this database: stop every process of it, then try again.');
    }
    return await work();
  } finally {
    await client.end().catch(() => {});
  }
}
