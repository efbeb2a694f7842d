/**
 * The official SDKs in a real browser, on a page of another origin, through the service to a fake of each provider: plain, streamed,
 * as multipart, refused, shut out half-way.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { chromium, type Browser, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { bundle, serve, type Site } from '../pages.ts';
import { caller, folder, remove, startService, type Running } from '../stage.ts';
import { SUBJECTS, WORDS, type Subject } from './sdk-subjects.ts';
import { SSE } from './stage.ts';

const ENTRY = `
import Anthropic from '@anthropic-ai/sdk';
import { GoogleGenAI } from '@google/genai';
import OpenAI, { AzureOpenAI } from 'openai';
import { KeyGuardClient } from '@keyguard/core';
import { indexedDbKeyStore } from '@keyguard/storage-indexeddb';

const messages = [{ role: 'user', content: 'Hello?' }];
const apiKey = 'kept by KeyGuard';
const guardOf = (origin) => new KeyGuardClient({ origin, keyStore: indexedDbKeyStore() });
const openaiCalls = (sdk) => ({
  plain: async (model) => (await sdk.chat.completions.create({ model, messages })).choices[0].message.content,
  async *stream(model) {
    for await (const { choices } of await sdk.chat.completions.create({ model, messages, stream: true })) if (choices[0]) yield choices[0].delta.content;
  },
  upload: async (file) => (await sdk.files.create({ purpose: 'user_data', file })).id,
});
const sdks = {
  openai: (origin, { fetch }) => openaiCalls(new OpenAI({ baseURL: origin + '/proxy/openai/v1', apiKey, fetch, dangerouslyAllowBrowser: true })),
  azure: (origin, { fetch }) => openaiCalls(new AzureOpenAI({ endpoint: origin + '/proxy/azure', apiKey, apiVersion: '2025-04-01-preview', fetch, dangerouslyAllowBrowser: true })),
  anthropic(origin, { fetch }) {
    const sdk = new Anthropic({ baseURL: origin + '/proxy/anthropic', apiKey, fetch, dangerouslyAllowBrowser: true });
    return {
      plain: async (model) => (await sdk.messages.create({ model, max_tokens: 9, messages })).content[0].text,
      async *stream(model) {
        for await (const { type, delta } of await sdk.messages.create({ model, max_tokens: 9, messages, stream: true })) if (type === 'content_block_delta') yield delta.text;
      },
      upload: async (file) => (await sdk.beta.files.upload({ file })).id,
    };
  },
  google(origin, { fetch }) {
    const sdk = new GoogleGenAI({ apiKey, httpOptions: { baseUrl: origin + '/proxy/google', fetch } });
    return {
      plain: async (model) => (await sdk.models.generateContent({ model, contents: 'Hello?' })).text,
      async *stream(model) {
        for await (const { text } of await sdk.models.generateContentStream({ model, contents: 'Hello?' })) if (text) yield text;
      },
      upload: async (file) => (await sdk.files.upload({ file })).name,
    };
  },
};

globalThis.enroll = (origin, code) => guardOf(origin).enroll({ code, label: 'browser' });
globalThis.seen = [];
globalThis.run = async (origin, provider, kind, model) => {
  const sdk = sdks[provider](origin, guardOf(origin));
  const words = (globalThis.seen = []);
  try {
    if (kind === 'plain') words.push(await sdk.plain(model));
    else if (kind === 'upload') words.push(await sdk.upload(new File([new Uint8Array([0, 255, 13, 10, 45, 45])], 'ü.bin', { type: 'application/octet-stream' })));
    else for await (const word of sdk.stream(model)) words.push(word);
    return { words };
  } catch ({ status, code, message }) {
    return { words, status, code, message };
  }
};
`;

interface Outcome {
  readonly words: readonly string[];
  readonly status?: number;
  readonly code?: string;
  readonly message?: string;
}
declare function enroll(origin: string, code: string): Promise<unknown>;
declare function run(origin: string, provider: string, kind: string, model: string): Promise<Outcome>;
declare const seen: readonly string[];

interface Upload {
  readonly type: string | undefined;
  readonly body: Buffer;
}

/** Answers as its provider would, by what the model is called: `fine`, `refuses-key`, `endless`. */
async function startFake(subject: Subject, key: string): Promise<{ readonly origin: string; readonly calls: IncomingMessage[]; readonly uploads: Upload[]; close(): void }> {
  const calls: IncomingMessage[] = [];
  const uploads: Upload[] = [];
  const [keyHeader] = subject.keyHeader;
  const answer = (request: IncomingMessage, response: ServerResponse, body: Buffer): void => {
    calls.push(request);
    const text = (request.url ?? '') + body.toString('latin1');
    const json = (status: number, value: object): void => void response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value));
    if (!String(request.headers[keyHeader]).endsWith(key) || text.includes('refuses-key')) json(401, subject.busy);
    else if (request.headers['content-type']?.startsWith('multipart/')) {
      uploads.push({ type: request.headers['content-type'], body });
      json(200, { id: 'file-1' });
    } else if (!text.includes('"stream":true') && !text.includes(':stream')) json(200, subject.body);
    else {
      const { words, last } = subject.events(WORDS);
      response.writeHead(200, SSE).write(words[0]);
      if (!text.includes('endless')) response.end(words.slice(1).join('') + last);
    }
  };
  const server: Server = createServer((request, response) => {
    const chunks: Buffer[] = [];
    request.on('data', (chunk: Buffer) => chunks.push(chunk)).on('end', () => answer(request, response, Buffer.concat(chunks)));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    calls,
    uploads,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}

const TITLES: Readonly<Record<string, string>> = { openai: 'openai, current', azure: 'openai for Azure, current', anthropic: '@anthropic-ai/sdk, current', google: '@google/genai, current' };
const PROVIDERS = Object.keys(TITLES);
const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };

describe('in a browser', { timeout: 60_000 }, () => {
  const fakes = new Map<string, Awaited<ReturnType<typeof startFake>>>();
  let site: Site;
  let data: string;
  let service: Running;
  let browser: Browser;
  let page: Page;
  let admin: string;
  const call = caller(() => service.origin);
  const inPage = (provider: string, kind: string, model: string): Promise<Outcome> =>
    page.evaluate(([origin, name, what, asked]) => run(origin, name, what, asked), [service.origin, provider, kind, model] as const);

  beforeAll(async () => {
    for (const provider of PROVIDERS) fakes.set(provider, await startFake(SUBJECTS.find(({ title }) => title === TITLES[provider])!, `key-of-${provider}`));
    site = await serve(await bundle(ENTRY));
    data = await folder();
    service = await startService(data, {
      KEYGUARD_ALLOWED_ORIGINS: site.origin,
      KEYGUARD_ADMIN_EMAIL: ADMIN.email,
      KEYGUARD_ADMIN_PASSWORD: ADMIN.password,
      OPENAI_API_KEY: 'key-of-openai',
      OPENAI_BASE_URL: `${fakes.get('openai')!.origin}/v1`,
      AZURE_OPENAI_API_KEY: 'key-of-azure',
      AZURE_OPENAI_ENDPOINT: fakes.get('azure')!.origin,
      ANTHROPIC_API_KEY: 'key-of-anthropic',
      ANTHROPIC_BASE_URL: fakes.get('anthropic')!.origin,
      GOOGLE_API_KEY: 'key-of-google',
      GOOGLE_GEMINI_BASE_URL: fakes.get('google')!.origin,
    });
    admin = (await call('POST', '/api/auth/sign-in/email', { body: ADMIN })).headers.get('set-auth-token')!;
    browser = await chromium.launch({ ...inject('chromium'), headless: true });
    page = await (await browser.newContext()).newPage();
    await page.goto(site.origin);
    await page.waitForFunction(() => 'run' in globalThis);
    const { code } = (await call('POST', '/api/enrollment-codes', { token: admin, body: {} })).json;
    await page.evaluate(([origin, given]) => enroll(origin, given), [service.origin, code as string] as const);
  }, 90_000);
  afterAll(async () => {
    await browser?.close();
    await service?.stop();
    site?.close();
    for (const fake of fakes.values()) fake.close();
    await remove(data);
  });

  describe.each(PROVIDERS)('the SDK of %s', (provider) => {
    it('gets an answer, and a stream word by word', async () => {
      expect(await inPage(provider, 'plain', 'fine')).toEqual({ words: [WORDS.join('')] });
      expect(await inPage(provider, 'stream', 'fine')).toEqual({ words: WORDS });
      const { rawHeaders, url, headers } = fakes.get(provider)!.calls.at(-1)!;
      expect(rawHeaders.join('\n')).not.toMatch(/keyguard-|kept by|stainless|origin|referer|sec-|dangerous/i);
      // Its own key in its own header, once, and that of nobody else.
      expect(rawHeaders.filter((text) => text.includes('key-of-'))).toEqual([expect.stringMatching(new RegExp(`^(?:Bearer )?key-of-${provider}$`))]);
      expect(url).not.toMatch(/kept|key/i);
      if (provider === 'azure') {
        expect(url).toBe('/openai/deployments/fine/chat/completions?api-version=2025-04-01-preview');
        expect([headers['api-key'], headers.authorization]).toEqual(['key-of-azure', undefined]);
      }
    });

    it('uploads to the byte, or is told that it cannot', async () => {
      const outcome = await inPage(provider, 'upload', 'fine');
      if (provider === 'google') {
        expect(outcome.message).toContain('x-goog-upload');
        return;
      }
      expect(outcome).toEqual({ words: ['file-1'] });
      const [{ type, body }] = fakes.get(provider)!.uploads as [Upload];
      const file = (await new Response(new Uint8Array(body), { headers: { 'content-type': type! } }).formData()).get('file') as File;
      expect([file.name, [...new Uint8Array(await file.arrayBuffer())]]).toEqual(['ü.bin', [0, 255, 13, 10, 45, 45]]);
    });

    it('reads from our headers that a second try is of no use', async () => {
      const { calls } = fakes.get(provider)!;
      const before = calls.length;
      expect(await inPage(provider, 'plain', 'refuses-key')).toMatchObject({ words: [], status: 502, message: expect.stringContaining('administrator') as string });
      // Its SDK does not repeat by itself unless it is told to.
      expect(calls.length - before).toBe(1);
    });

    it('raises when its device is shut out half-way, and says so at the next call', async () => {
      const [{ id }] = (await call('GET', '/api/devices', { token: admin })).json.data;
      const stream = inPage(provider, 'stream', 'endless');
      await page.waitForFunction(() => seen.length === 1);
      expect((await call('POST', `/api/devices/${id}/suspend`, { token: admin })).status).toBe(200);
      expect(await stream).toMatchObject({ words: [WORDS[0]], message: expect.stringContaining('may no longer call') as string });
      expect(await inPage(provider, 'plain', 'fine')).toMatchObject({ status: 403, message: expect.stringMatching(/suspended/i) as string });
      expect((await call('POST', `/api/devices/${id}/resume`, { token: admin })).status).toBe(200);
    });
  });
});
