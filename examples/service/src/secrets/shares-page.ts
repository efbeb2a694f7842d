/**
 * The page on which somebody opens a one-time link. The token stands behind `#` and so never comes here with a GET: whatever fetches
 * the address (a scanner of mail, a preview in a chat) gets a page with a button, and uses up nothing. Pressing it is the POST.
 *
 * One document with its style and script in it, allowed by their hashes; nothing else may run or be loaded.
 */
import { createHash } from 'node:crypto';
import { Router } from 'express';

export const LINK_PAGE_PATH = '/s';

interface Words {
  readonly dir: 'ltr' | 'rtl';
  readonly title: string;
  readonly intro: string;
  readonly passphrase: string;
  readonly open: string;
  readonly opening: string;
  readonly value: string;
  readonly copy: string;
  readonly copied: string;
  readonly once: string;
  readonly more: string;
  readonly gone: string;
  readonly wrong: string;
  readonly slow: string;
  readonly failed: string;
  readonly none: string;
  readonly noScript: string;
}

const ENGLISH: Words = {
  dir: 'ltr',
  title: 'A secret for you',
  intro: 'Somebody shares a secret with you. It is shown when you press the button, and the link may work only once: press it when you are ready to keep what you see.',
  passphrase: 'Passphrase',
  open: 'Show the secret',
  opening: 'Opening …',
  value: 'The secret',
  copy: 'Copy',
  copied: 'Copied',
  once: 'This link has done its work and does not open again. Keep what you see before you leave.',
  more: 'How often this link can still be opened:',
  gone: 'There is nothing to open here: the link is not complete, was used, has expired or was taken back. Ask whoever sent it for a new one.',
  wrong: 'There is nothing to open here: the passphrase is not right, or the link was used, has expired or was taken back.',
  slow: 'Too many tries. Wait a minute, then try again.',
  failed: 'The service does not answer as it should. Nothing may be lost: try again in a moment.',
  none: 'This address is not complete: what stands behind “#” is missing. Copy all of the link.',
  noScript: 'This page needs JavaScript.',
};

const ARABIC: Words = {
  dir: 'rtl',
  title: 'سرّ مُرسَل إليك',
  intro: 'شاركك أحدهم سرًّا. يظهر السرّ عند الضغط على الزر، وقد لا يعمل الرابط إلا مرة واحدة: اضغط عندما تكون مستعدًّا لحفظ ما ستراه.',
  passphrase: 'عبارة المرور',
  open: 'إظهار السرّ',
  opening: 'جارٍ الفتح …',
  value: 'السرّ',
  copy: 'نسخ',
  copied: 'تم النسخ',
  once: 'أدّى هذا الرابط مهمته ولن يُفتح مرة أخرى. احفظ ما تراه قبل مغادرة الصفحة.',
  more: 'عدد المرات المتبقية لفتح هذا الرابط:',
  gone: 'لا يوجد ما يُفتح هنا: الرابط غير مكتمل أو استُخدم أو انتهت صلاحيته أو سُحب. اطلب رابطًا جديدًا ممن أرسله.',
  wrong: 'لا يوجد ما يُفتح هنا: عبارة المرور غير صحيحة، أو استُخدم الرابط أو انتهت صلاحيته أو سُحب.',
  slow: 'محاولات كثيرة جدًّا. انتظر دقيقة ثم حاول مجددًا.',
  failed: 'الخدمة لا تستجيب كما ينبغي. قد لا يكون شيء قد ضاع: حاول بعد قليل.',
  none: 'هذا العنوان غير مكتمل: الجزء الواقع بعد «#» مفقود. انسخ الرابط كاملًا.',
  noScript: 'تحتاج هذه الصفحة إلى JavaScript.',
};

export const LANGUAGES = { en: ENGLISH, ar: ARABIC } as const;
export type Language = keyof typeof LANGUAGES;

const STYLE = `
:root { color-scheme: light dark; --line: #8a8f98; --main: #0b57d0; --on: #fff; }
@media (prefers-color-scheme: dark) { :root { --main: #a8c7fa; --on: #062e6f; } }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 36rem; margin: 10vh auto 2rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; }
label { display: block; margin: 1rem 0 .25rem; }
input, textarea { font: inherit; width: 100%; padding: .5rem; border: 1px solid var(--line); border-radius: .25rem; }
textarea { font-family: ui-monospace, monospace; min-height: 6rem; }
button { font: inherit; margin: 1rem 0; padding: .5rem 1.25rem; border: 0; border-radius: .25rem; background: var(--main); color: var(--on); cursor: pointer; }
button:disabled { opacity: .6; cursor: progress; }
:focus-visible { outline: 3px solid var(--main); outline-offset: 2px; }
[hidden] { display: none; }
`;

// The words that it says are in the document, so that one script serves every language.
const SCRIPT = `
'use strict';
(() => {
  const at = (id) => document.getElementById(id);
  const token = location.hash.slice(1);
  const say = (name, more) => { at('said').textContent = document.body.dataset[name] + (more === undefined ? '' : ' ' + more); };
  const asks = token.startsWith('kgp_');
  if (!/^kg[lp]_[A-Za-z0-9_-]{43}$/.test(token)) {
    say('none');
    at('form').hidden = true;
    return;
  }
  if (asks) { at('ask').hidden = false; at('passphrase').required = true; }
  at('form').addEventListener('submit', async (event) => {
    event.preventDefault();
    const button = at('open');
    const label = button.textContent;
    button.disabled = true;
    button.textContent = document.body.dataset.opening;
    at('said').textContent = '';
    try {
      const answer = await fetch('/api/shares/' + encodeURIComponent(token) + '/open', {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify(asks ? { passphrase: at('passphrase').value } : {}),
        credentials: 'omit', cache: 'no-store', referrerPolicy: 'no-referrer', redirect: 'error',
      });
      if (answer.ok) {
        const opened = await answer.json();
        at('form').hidden = true;
        at('intro').hidden = true;
        at('value').value = opened.value;
        at('shown').hidden = false;
        if (opened.views_left > 0) say('more', opened.views_left);
        else { say('once'); history.replaceState(null, '', location.pathname); }
        at('value').focus();
        return;
      }
      say(answer.status === 404 ? (asks ? 'wrong' : 'gone') : answer.status === 429 ? 'slow' : 'failed');
    } catch {
      say('failed');
    }
    button.disabled = false;
    button.textContent = label;
  });
  at('copy').addEventListener('click', async () => {
    const value = at('value');
    value.select();
    try { await navigator.clipboard.writeText(value.value); } catch { document.execCommand('copy'); }
    at('copy').textContent = document.body.dataset.copied;
  });
  window.addEventListener('pagehide', () => { at('value').value = ''; at('passphrase').value = ''; });
  window.addEventListener('hashchange', () => location.reload());
})();
`;

const SAID = ['opening', 'copied', 'once', 'more', 'gone', 'wrong', 'slow', 'failed', 'none'] as const satisfies readonly (keyof Words)[];

const escape = (text: string): string => text.replaceAll('&', '&amp;').replaceAll('"', '&quot;').replaceAll('<', '&lt;');

function pageIn(language: Language): string {
  const words = LANGUAGES[language];
  const data = SAID.map((name) => `data-${name}="${escape(words[name])}"`).join(' ');
  return `<!doctype html>
<html lang="${language}" dir="${words.dir}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex, nofollow, noarchive">
<meta name="referrer" content="no-referrer">
<title>${escape(words.title)}</title>
<style>${STYLE}</style>
</head>
<body ${data}>
<main>
<h1>${escape(words.title)}</h1>
<p id="intro">${escape(words.intro)}</p>
<noscript><p>${escape(words.noScript)}</p></noscript>
<form id="form" autocomplete="off">
<div id="ask" hidden><label for="passphrase">${escape(words.passphrase)}</label><input id="passphrase" type="password" maxlength="128" dir="auto" autocomplete="off"></div>
<button id="open" type="submit">${escape(words.open)}</button>
</form>
<div id="shown" hidden>
<label for="value">${escape(words.value)}</label>
<textarea id="value" readonly dir="auto" spellcheck="false" autocomplete="off"></textarea>
<button id="copy" type="button">${escape(words.copy)}</button>
</div>
<p id="said" role="status" aria-live="polite"></p>
</main>
<script>${SCRIPT}</script>
</body>
</html>
`;
}

const hashOf = (text: string): string => `'sha256-${createHash('sha256').update(text, 'utf8').digest('base64')}'`;

/** Its own script and style, this service to talk to, and nothing else. */
export const LINK_PAGE_CSP = [
  "default-src 'none'",
  `script-src ${hashOf(SCRIPT)}`,
  `style-src ${hashOf(STYLE)}`,
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

/** `GET /s`. */
export function linkPage(): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const pages: Readonly<Record<Language, string>> = { en: pageIn('en'), ar: pageIn('ar') };
  router.get(LINK_PAGE_PATH, (request, response) => {
    const language: Language = request.acceptsLanguages('en', 'ar') === 'ar' ? 'ar' : 'en';
    response
      .set({
        'content-security-policy': LINK_PAGE_CSP,
        'content-language': language,
        'cache-control': 'no-store',
        'referrer-policy': 'no-referrer',
        'x-robots-tag': 'noindex, nofollow, noarchive',
      })
      .vary('Accept-Language')
      .type('html')
      .send(pages[language]);
  });
  return router;
}
