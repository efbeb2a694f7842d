/**
 * The client in a real browser, on a page of another origin: the same twenty lines as in Node, with the official SDK and the key in
 * IndexedDB, against the service with its CORS rules.
 */
import { chromium, type Browser, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { bundle, serve, type Site } from './pages.ts';
import { caller, folder, remove, startService, type Running } from './stage.ts';

const ENTRY = `
import OpenAI from 'openai';
import { KeyGuardClient } from '@keyguard/core';
import { indexedDbKeyStore } from '@keyguard/storage-indexeddb';

const outcome = (work) => work().catch(({ name, code, status, message }) => ({ name, code, status, message }));

globalThis.enroll = (origin, code) => outcome(() => new KeyGuardClient({ origin, keyStore: indexedDbKeyStore() }).enroll({ code, label: 'browser' }));

globalThis.chat = (origin, question, offMs = 0) => outcome(async () => {
  const clock = { nowMs: () => Date.now() + offMs };
  const guard = new KeyGuardClient({ origin, keyStore: indexedDbKeyStore(), clock });
  const openai = new OpenAI({ baseURL: origin + '/proxy/openai/v1', apiKey: 'kept by KeyGuard', fetch: guard.fetch, dangerouslyAllowBrowser: true, maxRetries: 0 });
  const stream = await openai.chat.completions.create({ model: 'keyguard-demo', messages: [{ role: 'user', content: question }], stream: true });
  const pieces = [];
  for await (const chunk of stream) pieces.push(chunk.choices[0]?.delta.content ?? '');
  return { pieces: pieces.length, text: pieces.join('') };
});

globalThis.plainFetch = (url, init) => outcome(async () => {
  const response = await fetch(url, init);
  return { status: response.status };
});
`;

type Answer = Readonly<Record<string, unknown>>;
declare function enroll(origin: string, code: string): Promise<Answer>;
declare function chat(origin: string, question: string, offMs?: number): Promise<Answer>;
declare function plainFetch(url: string, init?: RequestInit): Promise<Answer>;

describe('a browser', { timeout: 60_000 }, () => {
  let site: Site;
  let stranger: Site;
  let data: string;
  let service: Running;
  let browser: Browser;
  let page: Page;
  let admin: string;
  const call = caller(() => service.origin);

  async function openPage(origin: string): Promise<Page> {
    const opened = await (await browser.newContext()).newPage();
    await opened.goto(origin);
    await opened.waitForFunction(() => 'chat' in globalThis);
    return opened;
  }

  const newCode = async (): Promise<string> => (await call('POST', '/api/enrollment-codes', { token: admin, body: { label: 'browser' } })).json.code;

  beforeAll(async () => {
    const script = await bundle(ENTRY);
    site = await serve(script);
    stranger = await serve(script);
    data = await folder();
    service = await startService(data, { KEYGUARD_ALLOWED_ORIGINS: site.origin, KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: 'a long and quiet password' });
    const signedIn = await call('POST', '/api/auth/sign-in/email', { body: { email: 'admin@example.com', password: 'a long and quiet password' } });
    admin = signedIn.headers.get('set-auth-token')!;
    browser = await chromium.launch({ ...inject('chromium'), headless: true });
    page = await openPage(site.origin);
  }, 90_000);

  afterAll(async () => {
    await browser?.close();
    await service?.stop();
    site?.close();
    stranger?.close();
    await remove(data);
  });

  it('enrolls and streams a chat completion through the official SDK', async () => {
    expect(await page.evaluate(([origin, code]) => enroll(origin, code), [service.origin, await newCode()] as const)).toMatchObject({ status: 'active' });
    const answer = await page.evaluate((origin) => chat(origin, 'Hello from Chromium, with ünïcode?'), service.origin);
    expect(answer['text']).toContain('Hello from Chromium, with ünïcode?');
    expect(answer['pieces']).toBeGreaterThan(5);
  });

  it('does so again after a reload, with the key that it kept', async () => {
    await page.reload();
    await page.waitForFunction(() => 'chat' in globalThis);
    expect(await page.evaluate((origin) => enroll(origin, 'no code'), service.origin)).toMatchObject({ status: 'active' });
    expect(await page.evaluate((origin) => chat(origin, 'again'), service.origin)).toMatchObject({ text: expect.stringContaining('again') as string });
  });

  it('corrects its clock by what the service says, which CORS lets it see', async () => {
    expect(await page.evaluate((origin) => chat(origin, 'an hour late', -3_600_000), service.origin)).toMatchObject({ text: expect.stringContaining('an hour late') as string });
  });

  it('is told in the SDK’s own error when the device is suspended', async () => {
    const { data: devices } = (await call('GET', '/api/devices', { token: admin })).json;
    const { id } = devices[0];
    expect((await call('POST', `/api/devices/${id}/suspend`, { token: admin })).status).toBe(200);
    expect(await page.evaluate((origin) => chat(origin, 'x'), service.origin)).toMatchObject({ status: 403, code: 'device_suspended' });
    expect((await call('POST', `/api/devices/${id}/resume`, { token: admin })).status).toBe(200);
  });

  it('gets nothing from a page whose origin is not allowed', async () => {
    const elsewhere = await openPage(stranger.origin);
    expect(await elsewhere.evaluate(([origin, code]) => enroll(origin, code), [service.origin, await newCode()] as const)).toMatchObject({ name: 'TypeError' });
    expect(await elsewhere.evaluate((origin) => plainFetch(`${origin}/api/keyguard/time`), service.origin)).toMatchObject({ name: 'TypeError' });
  });

  it('is never allowed into the control plane from another origin', async () => {
    expect(await page.evaluate((origin) => plainFetch(`${origin}/api/devices`), service.origin)).toMatchObject({ name: 'TypeError' });
    expect(await page.evaluate((origin) => plainFetch(`${origin}/api/devices`, { credentials: 'include' }), service.origin)).toMatchObject({ name: 'TypeError' });
  });
});
