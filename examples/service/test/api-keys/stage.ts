/** Provider keys in this process, over the database that a suite runs on, and a provider of ours that answers as it is told. */
import { once } from 'node:events';
import { createServer, type IncomingHttpHeaders, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Device } from '@keyguard/core/seams';
import { memoryRateLimiter } from '@keyguard/server-verifier';
import type { Person } from '../../src/auth/principal.ts';
import type { NewApiKey } from '../../src/api-keys/administering.ts';
import type { ApiKeysOptions } from '../../src/api-keys/parts.ts';
import { providerKeys, type ProviderKeys } from '../../src/api-keys/provider-keys.ts';
import { createApiKeys, type ApiKeys } from '../../src/api-keys/store.ts';
import { keyUpstreams, type KeyUpstreams } from '../../src/api-keys/upstreams.ts';
import { upstreamOf, PROVIDERS } from '../../src/llm/providers.ts';
import { createAccess } from '../../src/roles/access.ts';
import { createProjects, type Projects } from '../../src/projects/store.ts';
import { person } from '../roles/stage.ts';
import { openSecretStage, type SecretStage, type SecretStageOptions } from '../secrets/stage.ts';

export const ann: Person = person('ann');

export interface FakeProvider {
  readonly origin: string;
  /** What it was asked, and with which headers. */
  readonly asked: { readonly method: string; readonly url: string; readonly headers: IncomingHttpHeaders }[];
  /** With which status it answers the key; 0: not at all. */
  answer(statusOf: (key: string) => number): void;
  stop(): Promise<void>;
}

/** Takes each key unless it is told otherwise. A redirect leads to itself. */
export async function startProvider(): Promise<FakeProvider> {
  const asked: FakeProvider['asked'] = [];
  let statusOf: (key: string) => number = () => 200;
  const server: Server = createServer((request, response) => {
    asked.push({ method: request.method!, url: request.url!, headers: request.headers });
    const key = String(request.headers.authorization ?? request.headers['x-api-key'] ?? request.headers['x-goog-api-key'] ?? request.headers['api-key']).replace(/^Bearer /, '');
    request.resume().on('end', () => {
      const status = statusOf(key);
      if (status === 0) return;
      response.writeHead(status, { 'content-type': 'application/json', ...(status >= 300 && status < 400 && { location: '/elsewhere' }) });
      response.end(JSON.stringify({ echo: key, model: 'm', usage: { prompt_tokens: 3, completion_tokens: 4 } }));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    answer: (next) => void (statusOf = next),
    async stop() {
      server.close();
      server.closeAllConnections();
      if (server.listening) await once(server, 'close');
    },
  };
}

export interface KeyStage extends SecretStage {
  readonly provider: FakeProvider;
  readonly projects: Projects;
  readonly settings: { every_days: number | null; overlap_s: number };
  /** Of one process: its keys, and what devices get from it. */
  process(overrides?: Partial<ApiKeysOptions> & { readonly allowedOrigins?: ReadonlySet<string> }): { readonly apiKeys: ApiKeys; readonly providers: ProviderKeys; readonly used: string[]; readonly upstreams: KeyUpstreams };
  /** A project of Ann's. */
  newProject(): Promise<string>;
}

export async function openKeyStage(options: SecretStageOptions = {}): Promise<KeyStage> {
  const stage = await openSecretStage(options);
  const provider = await startProvider();
  const { sql, keys, audit, clock } = stage;
  const access = createAccess({ rowMacKey: keys.rowMacKey, clock });
  const projects = createProjects({ sql, rowMacKey: keys.rowMacKey, access, audit, clock, onChanged: () => {} });
  const settings = { every_days: 90, overlap_s: 3600 };
  const configured = new Map(PROVIDERS.map((one) => [one.name, upstreamOf(one, `${provider.origin}${one.baseUrlSuffix}`)!] as const));
  return {
    ...stage,
    provider,
    projects,
    settings,
    process({ allowedOrigins = new Set([provider.origin]), ...overrides } = {}) {
      const upstreams = keyUpstreams({ configured, allowedOrigins });
      const used: string[] = [];
      const apiKeys = createApiKeys({
        sql, keys, audit, projects, clock, upstreams, rotation: () => settings, probeLimiter: memoryRateLimiter({ perMinute: 1_000_000 }), onChanged: () => providers.clear(), ...overrides,
      });
      const providers = providerKeys({ apiKeys: () => apiKeys, upstreams, demo: null, onUsed: (id) => used.push(id), clock });
      return { apiKeys, providers, used, upstreams };
    },
    newProject: async () => (await projects.create(ann, { name: 'A project', environment: 'test' })).id,
    async close() {
      await provider.stop();
      await stage.close();
    },
  };
}

export const deviceOf = (projectId: string): Device => ({ projectId }) as Device;

export const newKey = (value: string, more: Partial<NewApiKey> = {}): NewApiKey => ({
  provider: 'openai', name: 'A key', value, baseUrl: null, options: { deployment: null, apiVersion: null }, rotateEveryDays: null, overlapSeconds: null, expiresAtMs: null, isDefault: true, verify: false, ...more,
});

export const AT_ONCE = { overlapSeconds: null, reason: null, verify: false, expiresAtMs: undefined, ifMatch: null } as const;
