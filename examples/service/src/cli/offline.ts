/** What the terminal command does to the data itself, while no service runs: it reads the service's own configuration. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readConfig, withDotEnv, type Config } from '../config.ts';
import { claimFolder } from '../db/folder-lock.ts';
import { openEmbedded, openPostgres, type Database } from '../db/connect.ts';
import { withRootAlone } from '../db/root-lock.ts';
import { scrub, wordsOf } from '../redaction.ts';
import { CommandError } from './terminal.ts';

// Where the service starts by `npx -y pnpm@12.21.0 start`.
const PACKAGE = fileURLToPath(new URL('../../', import.meta.url));
const OURS: ReadonlySet<string> = new Set(['ConfigError', 'UsageError', 'UnavailableError', 'FolderInUseError', 'FolderUnsafeError', 'RootInUseError', 'NotMigratedError', 'BackupError', 'HostError']);

/** Errors of ours in words, as a {@link CommandError}; all others as they are. */
export async function inWords<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Error) || !OURS.has(error.name)) throw error;
    const cause = error.cause instanceof Error ? ` (${wordsOf(error.cause)})` : '';
    throw new CommandError(scrub(`${error.message}${cause}`), { cause: error });
  }
}

/** The configuration of the service that is started in `folder`; by default here, or where `start` starts it. */
export function configOf(folder: string | undefined): Config {
  const here = process.cwd();
  const start = folder === undefined ? (['.env', 'data'].some((name) => existsSync(join(here, name))) ? here : PACKAGE) : resolve(here, folder);
  return readConfig(withDotEnv(process.env, start), start);
}

/** `work` with the database of `config`, while nobody else has it. */
export async function alone<T>(config: Config, work: (database: Database) => Promise<T>): Promise<T> {
  const { database: where } = config;
  if (where.kind === 'postgres') {
    return withRootAlone(where.url, async () => {
      const database = openPostgres(where.url, () => {});
      try {
        return await work(database);
      } finally {
        await database.close();
      }
    });
  }
  if (!existsSync(join(config.dataDir, 'database'))) throw new CommandError(`There is no database in ${config.dataDir}: name the folder in which the service is started with --folder.`);
  const lock = await claimFolder(config.dataDir, () => process.exit(1));
  try {
    const database = await openEmbedded(config.dataDir);
    try {
      return await work(database);
    } finally {
      await database.close();
    }
  } finally {
    lock.release();
  }
}
