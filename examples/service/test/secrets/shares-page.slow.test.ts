/** The page of a one-time link, in a real browser: what it does with a link, in both languages, and what nothing but a press does. */
import { chromium, type Browser, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, it, vi } from 'vitest';
import { startInProcess, type Person, type Stage } from '../matrix/stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 });

const VALUE = 'the value <b>of</b> the secret & "more"\nsecond line';
// A passphrase is derived before anything is said, on a machine that may be busy.
const SOON = { timeout: 15_000 };

describe('the page of a one-time link', () => {
  let stage: Stage;
  let owner: Person;
  let secretId: string;
  let browser: Browser;
  const errors: string[] = [];

  const newLink = async (options: object = {}): Promise<{ id: string; url: string; token: string }> => {
    const answer = await stage.call('POST', `/api/secrets/${secretId}/links`, { token: owner.token, body: options });
    expect(answer.status).toBe(201);
    return answer.json;
  };
  const viewsOf = async (id: string): Promise<number> => {
    const { json } = await stage.call('GET', `/api/secrets/${secretId}/shares`, { token: owner.token });
    return json.data.find((one: { id: string }) => one.id === id).views;
  };
  const visit = async (url: string, locale = 'en-GB'): Promise<Page> => {
    const page = await (await browser.newContext({ locale })).newPage();
    page.on('console', (message) => {
      if (message.type() === 'error' && !message.text().includes('404')) errors.push(message.text());
    });
    page.on('pageerror', (error) => errors.push(String(error)));
    await page.goto(url);
    return page;
  };

  beforeAll(async () => {
    stage = await startInProcess();
    owner = await stage.newPerson('owner');
    secretId = (await stage.call('POST', '/api/secrets', { token: owner.token, body: { name: 'shown once', value: VALUE } })).json.id;
    browser = await chromium.launch({ ...inject('chromium'), headless: true });
  });
  afterAll(async () => {
    await browser?.close();
    await stage?.stop();
  });

  it('uses up nothing when it is fetched, and forbids everything but itself', async () => {
    const { id, url } = await newLink();
    for (const method of ['GET', 'HEAD']) {
      const answer = await fetch(url, { method });
      expect(answer.status).toBe(200);
      expect(Object.fromEntries(answer.headers)).toMatchObject({
        'cache-control': 'no-store',
        'referrer-policy': 'no-referrer',
        'x-robots-tag': expect.stringContaining('noindex') as string,
        'content-security-policy': expect.stringMatching(/^default-src 'none'; script-src 'sha256-[^']+'; style-src 'sha256-[^']+'; connect-src 'self'/) as string,
      });
      expect(await answer.text()).not.toContain(VALUE);
    }
    const page = await visit(url);
    expect(await page.locator('#value').inputValue()).toBe('');
    expect(await viewsOf(id)).toBe(0);
  });

  it('shows the value as it is once the button is pressed, and nothing the second time', async () => {
    const { id, url } = await newLink();
    const page = await visit(url);
    await page.getByRole('button', { name: 'Show the secret' }).click();
    await page.locator('#shown').waitFor({ state: 'visible' });
    expect(await page.locator('#value').inputValue()).toBe(VALUE);
    expect(await page.locator('#said').textContent()).toContain('does not open again');
    expect(page.url()).toBe(`${stage.origin}/s`);
    expect(await viewsOf(id)).toBe(1);
    const again = await visit(url);
    await again.getByRole('button', { name: 'Show the secret' }).click();
    await expect.poll(() => again.locator('#said').textContent(), SOON).toContain('nothing to open here');
    expect(await again.locator('#value').inputValue()).toBe('');
  });

  it('asks for a passphrase where the link has one, and can be pressed again after a wrong one', async () => {
    const { url } = await newLink({ passphrase: 'horse battery' });
    const page = await visit(url);
    await page.getByLabel('Passphrase').fill('wrong horse');
    await page.getByRole('button', { name: 'Show the secret' }).click();
    await expect.poll(() => page.locator('#said').textContent(), SOON).toContain('passphrase is not right');
    await page.getByLabel('Passphrase').fill('horse battery');
    await page.getByRole('button', { name: 'Show the secret' }).click();
    await page.locator('#shown').waitFor({ state: 'visible' });
    expect(await page.locator('#value').inputValue()).toBe(VALUE);
  });

  it('speaks Arabic from right to left to who asks for Arabic', async () => {
    const { url } = await newLink();
    const page = await visit(url, 'ar-EG');
    expect(await page.locator('html').getAttribute('dir')).toBe('rtl');
    expect(await page.locator('html').getAttribute('lang')).toBe('ar');
    expect(await page.locator('h1').evaluate((heading) => getComputedStyle(heading).direction)).toBe('rtl');
    await page.getByRole('button', { name: 'إظهار السرّ' }).click();
    await page.locator('#shown').waitFor({ state: 'visible' });
    expect(await page.locator('#value').inputValue()).toBe(VALUE);
    // A value keeps its own direction.
    expect(await page.locator('#value').evaluate((field) => getComputedStyle(field).direction)).toBe('ltr');
  });

  it('says what is missing where the address was cut off', async () => {
    const page = await visit(`${stage.origin}/s`);
    expect(await page.locator('#said').textContent()).toContain('is not complete');
    expect(await page.locator('#form').isHidden()).toBe(true);
  });

  it('has broken none of its own rules on the way', () => {
    expect(errors).toEqual([]);
  });
});
