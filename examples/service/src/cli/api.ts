/** The control plane as the terminal command sees it: HTTP, and nothing else. */
import { CommandError } from './terminal.ts';
import type { Session, SessionFile } from './session-file.ts';

export const COMMAND = 'npx -y pnpm@12.21.0 keyguard';

export type Json = Readonly<Record<string, unknown>>;

export interface Answer {
  /** `{}` for what is not JSON. */
  readonly json: Json;
  readonly text: string;
  readonly headers: Headers;
}

export interface Api {
  readonly origin: string;
  /** As nobody. @throws CommandError in words that say what to do */
  send(method: 'GET' | 'POST', path: string, body?: Json, token?: string): Promise<Answer>;
  /** As who is signed in. */
  sendSigned(method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE', path: string, body?: Json): Promise<Json>;
  /** Likewise, for what is not JSON. */
  fetchSigned(method: 'GET' | 'POST', path: string, body?: Json): Promise<Answer>;
  /** The body of an answer as it comes, whatever its length. */
  streamSigned(path: string): Promise<AsyncIterable<Uint8Array>>;
  /** All pages of a list, up to `limit` rows. */
  list(path: string, limit: number): Promise<readonly Json[]>;
}

/** The server was asked in order, and says no. */
export class RefusedError extends CommandError {
  readonly code: string;

  constructor(message: string, code: string) {
    super(message);
    this.code = code;
  }
}

/** The server knows nothing of the session that is kept here. */
export class SessionEndedError extends CommandError {}

/** @throws CommandError for what is no origin */
export function originOf(url: string): string {
  try {
    const parsed = new URL(url);
    if (/^https?:$/.test(parsed.protocol) && parsed.pathname === '/' && parsed.search === '') return parsed.origin;
  } catch {
    // Below.
  }
  throw new CommandError(`"${url}" is not the address of a server, such as http://localhost:3000.`);
}

export function createApi(origin: string, sessions: SessionFile): Api {
  async function ask(method: string, path: string, body?: Json, token?: string, accept: string = 'application/json, text/plain;q=0.9'): Promise<Response> {
    const headers: Record<string, string> = { accept };
    if (token !== undefined) headers['authorization'] = `Bearer ${token}`;
    if (body !== undefined) headers['content-type'] = 'application/json';
    let response: Response;
    try {
      response = await fetch(origin + path, { method, headers, redirect: 'error', ...(body !== undefined && { body: JSON.stringify(body) }) });
    } catch (cause) {
      const message = `KeyGuard does not answer at ${origin}. Is it running? Start it with  npx -y pnpm@12.21.0 start  or name its address with --url.`;
      throw new CommandError(message, { cause });
    }
    if (!response.ok) throw refusal(response, readJson(await response.text()), token !== undefined);
    return response;
  }

  async function send(method: string, path: string, body?: Json, token?: string): Promise<Answer> {
    const response = await ask(method, path, body, token);
    const text = await response.text();
    return { json: readJson(text), text, headers: response.headers };
  }

  async function sessionOf(): Promise<Session> {
    const session = await sessions.read(origin);
    if (session === null) throw new CommandError(`You are not signed in at ${origin}. Run  ${COMMAND} login  first.`);
    return session;
  }

  async function fetchSigned(method: string, path: string, body?: Json): Promise<Answer> {
    const session = await sessionOf();
    const answer = await send(method, path, body, session.token);
    // What changes how one is known ends the session that asked, and gives another one.
    const token = answer.headers.get('set-auth-token');
    if (token !== null) await sessions.write(origin, { ...session, token });
    return answer;
  }

  async function sendSigned(method: string, path: string, body?: Json): Promise<Json> {
    return (await fetchSigned(method, path, body)).json;
  }

  return {
    origin,
    send,
    sendSigned,
    fetchSigned,
    async streamSigned(path) {
      const { body } = await ask('GET', path, undefined, (await sessionOf()).token, '*/*');
      return body ?? (async function* (): AsyncGenerator<Uint8Array> {})();
    },
    async list(path, limit) {
      const rows: Json[] = [];
      let cursor: string | null = null;
      do {
        const query = new URLSearchParams({ limit: String(Math.min(200, limit - rows.length)) });
        if (cursor !== null) query.set('cursor', cursor);
        const page = await sendSigned('GET', `${path}${path.includes('?') ? '&' : '?'}${query}`);
        rows.push(...(page['data'] as Json[]));
        cursor = page['next_cursor'] as string | null;
      } while (cursor !== null && rows.length < limit);
      return rows;
    },
  };
}

function readJson(text: string): Json {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Json) : {};
  } catch {
    return {};
  }
}

function refusal(response: Response, json: Json, isSigned: boolean): CommandError {
  const detail = typeof json['detail'] === 'string' ? json['detail'] : `The server answered ${response.status}: is it a KeyGuard?`;
  const id = response.status >= 500 && typeof json['request_id'] === 'string' ? ` (${json['request_id']})` : '';
  if (response.status === 401 && isSigned) return new SessionEndedError(`Your session has ended. Run  ${COMMAND} login  again.`);
  if (json['code'] === 'setup_complete') return new CommandError(`${detail} Run  ${COMMAND} login`);
  return new RefusedError(detail + id, typeof json['code'] === 'string' ? json['code'] : '');
}
