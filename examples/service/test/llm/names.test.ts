/**
 * Which names are looked up, and what happens when the answer changes: a resolver that counts what it is asked, and upstreams behind
 * TLS.
 */
import dns, { type LookupAddress } from 'node:dns';
import { once } from 'node:events';
import http, { type Server } from 'node:http';
import https from 'node:https';
import net, { type AddressInfo, type Server as NetServer } from 'node:net';
import tls from 'node:tls';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { FORMS } from './canary-forms.ts';
import { certificateFor, type Certificate } from './certificate.ts';
import { openaiUpstream, PLAIN, PROVIDER_KEY, startStage, type Stage, type StageOptions } from './stage.ts';

const NAME = 'api.provider.test';
const COMPLETION = JSON.stringify({ id: 'c', object: 'chat.completion', model: 'm', choices: [{ index: 0, message: { role: 'assistant', content: 'Hello!' }, finish_reason: 'stop' }] });

type Callback = (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void;

const trusted = tls.getCACertificates('default');
const own = certificateFor(NAME);
const asked: string[] = [];
/** Where a name leads now. */
let leadsTo: (name: string) => readonly string[] = () => ['127.0.0.1'];
const closers: (() => unknown)[] = [];

beforeAll(() => tls.setDefaultCACertificates([...trusted, own.cert]));
afterAll(() => tls.setDefaultCACertificates(trusted));
beforeEach(() => {
  asked.length = 0;
  leadsTo = () => ['127.0.0.1'];
  vi.spyOn(dns, 'lookup').mockImplementation(((name: string, options: { all?: boolean }, callback: Callback) => {
    // Servers ask here too, for the address on which they listen.
    if (net.isIP(name) === 0) asked.push(name);
    const addresses = (net.isIP(name) === 0 ? leadsTo(name) : [name]).map((address): LookupAddress => ({ address, family: net.isIP(address) }));
    setImmediate(() => (options.all === true ? callback(null, addresses) : callback(null, addresses[0]!.address, addresses[0]!.family)));
  }) as unknown as typeof dns.lookup);
});
afterEach(async () => {
  vi.restoreAllMocks();
  for (const close of closers.splice(0).toReversed()) await close();
});

async function listening(server: NetServer, host: string, port = 0): Promise<number> {
  server.listen(port, host);
  await once(server, 'listening');
  closers.push(() => {
    server.close();
    if ('closeAllConnections' in server) (server as Server).closeAllConnections();
  });
  return (server.address() as AddressInfo).port;
}

/** A provider, which lets no connection live for a second call. */
function provider(certificate: Certificate | null): { readonly server: Server; readonly keys: unknown[] } {
  const keys: unknown[] = [];
  const answer: http.RequestListener = ({ headers }, response) => {
    keys.push(headers.authorization);
    response.writeHead(200, { 'content-type': 'application/json', connection: 'close' }).end(COMPLETION);
  };
  return { server: certificate === null ? http.createServer(answer) : https.createServer({ cert: certificate.cert, key: certificate.key.export({ type: 'pkcs8', format: 'pem' }) }, answer), keys };
}

async function stageTo(baseUrl: string, options: Partial<StageOptions> = {}): Promise<Stage> {
  const stage = await startStage({ upstream: openaiUpstream(baseUrl), ...options });
  closers.push(() => stage.close());
  return stage;
}

const call = (stage: Stage): Promise<unknown> => stage.openai().chat.completions.create(PLAIN).then(({ choices }) => choices[0]!.message.content, ({ code }: { code?: unknown }) => code);

describe('a name', () => {
  it('is looked up if it is the one that the operator has configured, and no other, however a client spells it', async () => {
    const { server, keys } = provider(own);
    const stage = await stageTo(`https://${NAME}:${await listening(server, '127.0.0.1')}/v1`);
    for (const [, form] of FORMS) await stage.send(form('canary.example:443'));
    expect(new Set(asked)).toEqual(new Set([NAME]));
    expect(keys.length).toBeGreaterThanOrEqual(120);
    expect(new Set(keys)).toEqual(new Set([`Bearer ${PROVIDER_KEY}`]));
  });

  it.each<[string, () => Certificate | null]>([
    ['a certificate for its own name', () => certificateFor('impostor.test')],
    ['a certificate for the right name, by nobody who is trusted', () => certificateFor(NAME)],
    ['no TLS', () => null],
  ])('that leads elsewhere all at once, to somebody with %s: no byte of a call gets there', async (_, certificate) => {
    const [real, impostor] = [provider(own), provider(certificate())];
    let tries = 0;
    let received = '';
    impostor.server.on('connection', (socket) => {
      tries += 1;
      socket.on('data', (bytes: Buffer) => (received += bytes.toString('latin1')));
    });
    const port = await listening(real.server, '127.0.0.1');
    await listening(impostor.server, '127.0.0.2', port);
    const stage = await stageTo(`https://${NAME}:${port}/v1`);
    expect(await call(stage)).toBe('Hello!');
    leadsTo = () => ['127.0.0.2'];
    expect(await call(stage)).toBe('upstream_unreachable');
    expect([impostor.keys, received.includes(PROVIDER_KEY)]).toEqual([[], false]);
    expect(tries).toBe(1);
    expect(new Set(asked)).toEqual(new Set([NAME]));
    leadsTo = () => ['127.0.0.1'];
    expect(await call(stage)).toBe('Hello!');
  });

  it('of this machine, to which a key goes without TLS, leads to this machine or nowhere', async () => {
    const { server, keys } = provider(null);
    const stage = await stageTo(`http://localhost:${await listening(server, '127.0.0.1')}/v1`);
    expect(await call(stage)).toBe('Hello!');
    // Which the system would take for this machine as well, so that a connection would succeed.
    leadsTo = () => ['0.0.0.0'];
    expect(await call(stage)).toBe('upstream_unreachable');
    expect(keys).toHaveLength(1);
    leadsTo = () => ['0.0.0.0', '127.0.0.1'];
    expect(await call(stage)).toBe('Hello!');
    expect(new Set(asked)).toEqual(new Set(['localhost']));
  });
});
