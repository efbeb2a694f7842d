/**
 * `/api/docs`: the API's document as a page to read and to try. Everything on it comes from this service, as files of the npm package
 * of Swagger UI; no script stands in the page, and none comes from elsewhere.
 */
import { createRequire } from 'node:module';
import { join, dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Router } from 'express';

const PACKAGE = dirname(createRequire(import.meta.url).resolve('swagger-ui-dist/package.json'));
const OWN = fileURLToPath(new URL('api-docs/', import.meta.url));

const FILES: Readonly<Record<string, string>> = {
  '/api/docs': join(OWN, 'index.html'),
  '/api/docs/page.css': join(OWN, 'page.css'),
  '/api/docs/page.js': join(OWN, 'page.js'),
  '/api/docs/swagger-ui.css': join(PACKAGE, 'swagger-ui.css'),
  '/api/docs/swagger-ui.js': join(PACKAGE, 'swagger-ui-bundle.js'),
  '/api/docs/favicon.png': join(PACKAGE, 'favicon-32x32.png'),
};

// Swagger UI draws its icons from data: URLs. What it may ask is this service, and nobody else.
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
].join('; ');

export function apiDocs(): Router {
  const router = Router({ caseSensitive: true, strict: true });
  for (const [path, file] of Object.entries(FILES)) {
    router.get(path, (_request, response, next) => {
      response.set('content-security-policy', POLICY).set('cache-control', 'no-cache');
      response.sendFile(file, { cacheControl: false, etag: true, dotfiles: 'allow' }, (error) => {
        if (error !== undefined && error !== null) next(error);
      });
    });
  }
  return router;
}
