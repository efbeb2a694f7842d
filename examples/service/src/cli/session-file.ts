/**
 * Where the terminal command keeps who is signed in: one token per server, in a file that only this user can read.
 */
import { chmod, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { randomUUID } from 'node:crypto';

export interface Session {
  readonly email: string;
  /** Secret: whoever has it is signed in. */
  readonly token: string;
}

type Sessions = Readonly<Record<string, Session>>;

export interface SessionFile {
  readonly path: string;
  read(origin: string): Promise<Session | null>;
  write(origin: string, session: Session | null): Promise<void>;
}

export function sessionFile(environment: NodeJS.ProcessEnv): SessionFile {
  const base = environment['XDG_CONFIG_HOME'] || (process.platform === 'win32' ? environment['APPDATA'] : undefined) || join(homedir(), '.config');
  const path = join(base, 'keyguard', 'sessions.json');

  async function readAll(): Promise<Sessions> {
    try {
      const value: unknown = JSON.parse(await readFile(path, 'utf8'));
      return typeof value === 'object' && value !== null ? (value as Sessions) : {};
    } catch {
      // None yet, or torn: either way nobody is signed in.
      return {};
    }
  }

  return {
    path,
    async read(origin) {
      const session = (await readAll())[origin];
      return typeof session?.token === 'string' && typeof session.email === 'string' ? session : null;
    },
    async write(origin, session) {
      const all = Object.fromEntries(Object.entries(await readAll()).filter(([name]) => name !== origin));
      if (session !== null) all[origin] = session;
      await mkdir(dirname(path), { recursive: true, mode: 0o700 });
      const temporary = `${path}.${randomUUID()}`;
      await writeFile(temporary, `${JSON.stringify(all, null, 2)}\n`, { mode: 0o600, flag: 'wx' });
      await chmod(temporary, 0o600);
      await rename(temporary, path);
    },
  };
}
